// Asks the service about a picture. Knows HTTP and nothing of the page.

const LONGEST_PAUSE = 60;
let headers = { Accept: "application/json" };

/** From now on, sends a key: not as Authorization, which a proxy in front may want for itself. */
export function useKey(key) {
  headers = { ...headers, "X-API-Key": key };
}

/** Why there is no answer, in words for people. */
export class Refusal extends Error {
  constructor(problem, { status = 0, retryAfter = NaN } = {}) {
    super(problem.detail);
    this.title = problem.title;
    this.code = problem.code;
    this.requestId = problem.request_id;
    this.retryAfter = retryAfter;
    this.wantsKey = status === 401;
    // What may be different next time: the service was busy, or the connection broke.
    this.isPassing = status === 0 || status === 408 || status >= 500;
  }
}

/** Runs at most `limit` jobs at a time, first come first served. */
export function lanes(limit) {
  const waiting = [];
  let running = 0;
  const proceed = () => {
    while (running < limit && waiting.length > 0) {
      running += 1;
      waiting.shift()().finally(() => {
        running -= 1;
        proceed();
      });
    }
  };
  return (job) => {
    waiting.push(job);
    proceed();
  };
}

/** The answer; after a refusal with Retry-After, the second try's. `onPause` is told of the first. */
export async function predictPatiently(file, signal, onPause) {
  try {
    return await predict(file, signal);
  } catch (error) {
    if (!(error.retryAfter <= LONGEST_PAUSE)) throw error;
    onPause(error);
    await pause(error.retryAfter, signal);
    return predict(file, signal);
  }
}

async function predict(file, signal) {
  const body = new FormData();
  body.append("img", file);
  const started = performance.now();
  const response = await send({ method: "POST", headers, body, signal });
  if (!response.ok) throw await refusal(response);
  const answer = await response.json();
  const stages = parseServerTiming(response.headers.get("Server-Timing") ?? "");
  return { ...answer, stages, roundTrip: performance.now() - started };
}

async function send(request) {
  try {
    return await fetch("predict", request);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal({
      title: "No answer",
      detail: "The service could not be reached, or the connection broke. Try again.",
    });
  }
}

async function refusal(response) {
  const { status } = response;
  const retryAfter = status === 503 ? Number(response.headers.get("Retry-After") ?? NaN) : NaN;
  const isProblem = response.headers.get("Content-Type")?.startsWith("application/problem+json");
  const problem = isProblem
    ? await response.json()
    : { title: `Refused with status ${status}`, detail: "Something before the service refused it." };
  return new Refusal(problem, { status, retryAfter });
}

/** `read;dur=0.1, infer;dur=2.5` as pairs of stage and milliseconds. */
export function parseServerTiming(header) {
  return [...header.matchAll(/([\w-]+);dur=([\d.]+)/g)].map(([, stage, ms]) => [stage, Number(ms)]);
}

function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, 1000 * seconds);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    }, { once: true });
  });
}
