// What the service does now, from two readings of its /metrics. Rests while nobody looks.

const EVERY = 2000;
const READINGS = 6; // with the newest, these look ten seconds back
const PREDICT = 'route="/predict"';
const show = (id) => (text) => (document.getElementById(id).textContent = text);
const strip = document.getElementById("live");
const note = show("live-note");
const fields = {
  perSecond: show("per-second"),
  batchSize: show("batch-size"),
  p99: show("p99"),
  model: show("model"),
};

let readings = [];
let clock = null;

/** Keeps the strip up to date from now on. */
export function start() {
  clock = setInterval(update, EVERY);
  document.addEventListener("visibilitychange", () => {
    readings = []; // those from before would tell of long ago
    update();
  });
  update();
}

async function update() {
  if (document.hidden) return;
  let response;
  try {
    response = await fetch("metrics", { signal: AbortSignal.timeout(EVERY) });
  } catch {
    hide("The service does not answer.");
    return;
  }
  if (response.ok) {
    present(reading(await response.text(), performance.now() / 1000));
  } else {
    hide("This service does not show its metrics here.");
    if (response.status < 500) clearInterval(clock); // it is no use to ask again
  }
}

function hide(reason) {
  readings = [];
  strip.hidden = true;
  note(reason);
}

function present(newest) {
  // A smaller count: the service has started anew, or another of several has answered.
  if (readings.length > 0 && newest.predictions < readings.at(-1).predictions) readings = [];
  readings = [...readings, newest].slice(-READINGS);
  const now = difference(readings[0], newest);
  fields.perSecond(now.perSecond === null ? "…" : now.perSecond.toFixed(1));
  fields.batchSize(now.batchSize === null ? "–" : now.batchSize.toFixed(1));
  fields.p99(now.p99 === null ? "–" : duration(now.p99));
  fields.model(newest.model ?? "is being loaded");
  strip.hidden = false;
  note("Over the last ten seconds, all clients together.");
}

/** What the strip needs of Prometheus' text format. */
export function reading(text, at) {
  const found = { at, predictions: 0, batches: 0, items: 0, buckets: new Map(), model: null };
  for (const [, name, labels = "", number] of text.matchAll(/^(\w+)(?:\{(.*)\})? (\S+)$/gm)) {
    const value = Number(number);
    const label = (key) => labels.match(`(?:^|,)${key}="([^"]*)"`)?.[1];
    if (name === "shoal_batch_size_count") found.batches += value;
    if (name === "shoal_batch_size_sum") found.items += value;
    if (name === "shoal_model_info") {
      found.model = `${label("model")}, version ${label("version")}, on ${label("device")}`;
    }
    if (!labels.includes(PREDICT)) continue;
    if (name === "shoal_request_duration_seconds_count") found.predictions += value;
    if (name === "shoal_request_duration_seconds_bucket") {
      const le = Number(label("le").replace("+Inf", "Infinity"));
      found.buckets.set(le, (found.buckets.get(le) ?? 0) + value);
    }
  }
  return found;
}

/** What happened between two readings; null where nothing did. */
export function difference(older, newer) {
  const seconds = newer.at - older.at;
  const batches = newer.batches - older.batches;
  const since = [...newer.buckets].map(([le, count]) => [le, count - (older.buckets.get(le) ?? 0)]);
  return {
    perSecond: seconds > 0 ? (newer.predictions - older.predictions) / seconds : null,
    batchSize: batches > 0 ? (newer.items - older.items) / batches : null,
    p99: quantile(0.99, since),
  };
}

/** As Prometheus' histogram_quantile: linear within the bucket. Pairs of bound and count so far. */
export function quantile(share, buckets) {
  const sorted = [...buckets].sort(([a], [b]) => a - b);
  const total = sorted.at(-1)?.[1] ?? 0;
  if (total === 0) return null;
  let [lower, below] = [0, 0];
  for (const [upper, count] of sorted) {
    if (count >= share * total) {
      if (upper === Infinity) return lower;
      return lower + ((upper - lower) * (share * total - below)) / (count - below);
    }
    [lower, below] = [upper, count];
  }
  return lower;
}

function duration(seconds) {
  if (seconds >= 1) return `${seconds.toFixed(1)} s`;
  return `${(1000 * seconds).toFixed(seconds < 0.01 ? 1 : 0)} ms`;
}
