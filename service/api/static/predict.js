// Sends pictures to the service. This module does not depend on the page.

const MAX_PAUSE = 60; // seconds
let headers = {};

/** Sends this key with every request, as X-API-Key: a proxy may use the header Authorization. */
export function setKey(key) {
  headers = { "X-API-Key": key };
}

/** The error of a picture that was not classified. Its message is written for people. */
export class PredictError extends Error {
  constructor(problem, { status = 0, retryAfter = NaN } = {}) {
    super(problem.detail);
    this.title = problem.title;
    this.code = problem.code;
    this.requestId = problem.request_id;
    this.retryAfter = retryAfter;
    this.needsKey = status === 401;
    // Another attempt may succeed: the service was busy, or the connection broke.
    this.isTemporary = status === 0 || status === 408 || status >= 500;
  }
}

/** Returns a function that queues jobs. At most `limit` jobs run at the same time, in order. */
export function createQueue(limit) {
  const waiting = [];
  let running = 0;
  const runNext = () => {
    while (running < limit && waiting.length > 0) {
      running += 1;
      waiting.shift()().finally(() => {
        running -= 1;
        runNext();
      });
    }
  };
  return (job) => {
    waiting.push(job);
    runNext();
  };
}

/**
 * Classifies a picture. After an error with Retry-After, it calls `onPause` with the error, waits,
 * and tries a second time.
 */
export async function predictWithRetry(file, signal, onPause) {
  try {
    return await predict(file, signal);
  } catch (error) {
    if (!(error.retryAfter <= MAX_PAUSE)) throw error;
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
  if (!response.ok) throw await errorOf(response);
  const answer = await response.json();
  const stages = parseServerTiming(response.headers.get("Server-Timing") ?? "");
  return { ...answer, stages, roundTrip: performance.now() - started };
}

async function send(request) {
  try {
    return await fetch("predict", request);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new PredictError({
      title: "No answer",
      detail: "The service cannot be reached, or the connection broke. Try again.",
    });
  }
}

async function errorOf(response) {
  const { status } = response;
  const retryAfter = status === 503 ? Number(response.headers.get("Retry-After") ?? NaN) : NaN;
  const isProblem = response.headers.get("Content-Type")?.startsWith("application/problem+json");
  const problem = isProblem
    ? await response.json()
    : { title: `Rejected with status ${status}`, detail: "A proxy in front of the service rejected the request." };
  return new PredictError(problem, { status, retryAfter });
}

/** Parses `read;dur=0.1, infer;dur=2.5` into pairs of stage and milliseconds. */
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
