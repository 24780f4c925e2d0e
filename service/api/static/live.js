// Shows figures of the service, computed from its /metrics. Pauses while the page is hidden.

const INTERVAL = 2000; // milliseconds
const MAX_SAMPLES = 6; // the first and the last are ten seconds apart
const PREDICT = 'route="/predict"';
const setText = (id) => (text) => (document.getElementById(id).textContent = text);
const panel = document.getElementById("live");
const setNote = setText("live-note");
const fields = {
  perSecond: setText("per-second"),
  batchSize: setText("batch-size"),
  p99: setText("p99"),
  model: setText("model"),
};

let samples = [];
let timer = null;
let explained = null; // model whose reasons are the tooltip

/** Starts to update the figures. */
export function start() {
  timer = setInterval(update, INTERVAL);
  document.addEventListener("visibilitychange", () => {
    samples = []; // older samples would span the time in which the page was hidden
    update();
  });
  update();
}

async function update() {
  if (document.hidden) return;
  let response;
  try {
    response = await fetch("metrics", { signal: AbortSignal.timeout(INTERVAL) });
  } catch {
    hide("The service does not respond.");
    return;
  }
  if (response.ok) {
    show(parseMetrics(await response.text(), performance.now() / 1000));
  } else {
    hide("This service does not publish its metrics here.");
    if (response.status < 500) clearInterval(timer); // further requests would fail as well
  }
}

function hide(reason) {
  samples = [];
  panel.hidden = true;
  setNote(reason);
}

function show(newest) {
  // A smaller count means that the service was restarted, or that another instance responded.
  if (samples.length > 0 && newest.predictions < samples.at(-1).predictions) samples = [];
  samples = [...samples, newest].slice(-MAX_SAMPLES);
  const change = difference(samples[0], newest);
  fields.perSecond(change.perSecond === null ? "…" : change.perSecond.toFixed(1));
  fields.batchSize(change.batchSize === null ? "–" : change.batchSize.toFixed(1));
  fields.p99(change.p99 === null ? "–" : duration(change.p99));
  fields.model(newest.model ?? "is being loaded");
  if (newest.model !== explained) explain(newest.model);
  panel.hidden = false;
  setNote("All clients, over the last ten seconds.");
}

/** Makes the reasons for the device, the backend and the precision the tooltip of the model. */
async function explain(model) {
  explained = model;
  const element = document.getElementById("model");
  element.title = "";
  if (model === null) return;
  try {
    const response = await fetch("readyz", { signal: AbortSignal.timeout(INTERVAL) });
    const ready = await response.json();
    if (!response.ok) throw new Error(ready.detail);
    element.title = ["device", "backend", "precision"]
      .map((field) => `${field} ${ready[field]}: ${ready[`${field}_reason`]}`)
      .join("\n");
  } catch {
    explained = null; // asks again with the next figures
  }
}

/** Reads the figures that the panel needs from Prometheus' text format. `at`: time in seconds. */
export function parseMetrics(text, at) {
  const sample = { at, predictions: 0, batches: 0, items: 0, buckets: new Map(), model: null };
  for (const [, name, labels = "", number] of text.matchAll(/^(\w+)(?:\{(.*)\})? (\S+)$/gm)) {
    const value = Number(number);
    const label = (key) => labels.match(`(?:^|,)${key}="([^"]*)"`)?.[1];
    if (name === "shoal_batch_size_count") sample.batches += value;
    if (name === "shoal_batch_size_sum") sample.items += value;
    if (name === "shoal_model_info") {
      sample.model =
        `${label("model")}, version ${label("version")}, on ${label("device")} ` +
        `with ${label("backend")}`;
    }
    if (!labels.includes(PREDICT)) continue;
    if (name === "shoal_request_duration_seconds_count") sample.predictions += value;
    if (name === "shoal_request_duration_seconds_bucket") {
      const le = Number(label("le").replace("+Inf", "Infinity"));
      sample.buckets.set(le, (sample.buckets.get(le) ?? 0) + value);
    }
  }
  return sample;
}

/** The figures between two samples. A figure is null if nothing happened between them. */
export function difference(older, newer) {
  const seconds = newer.at - older.at;
  const batches = newer.batches - older.batches;
  const buckets = [...newer.buckets].map(([le, count]) => [le, count - (older.buckets.get(le) ?? 0)]);
  return {
    perSecond: seconds > 0 ? (newer.predictions - older.predictions) / seconds : null,
    batchSize: batches > 0 ? (newer.items - older.items) / batches : null,
    p99: quantile(0.99, buckets),
  };
}

/**
 * Computes a quantile like Prometheus' histogram_quantile, linear within a bucket.
 * `buckets`: pairs of upper bound and cumulative count.
 */
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
