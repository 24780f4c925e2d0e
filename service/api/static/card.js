// Shows one picture on the page, with its classification or its error.

import { draw } from "./picture.js";

const MAX_BARS = 5;
const template = document.getElementById("card");

export class Card {
  #outcome;

  constructor(file) {
    this.file = file;
    this.name = file.name || "Pasted picture";
    this.isDone = false;
    this.needsKey = false;
    this.element = template.content.firstElementChild.cloneNode(true);
    this.element.querySelector("h3").textContent = this.name;
    this.#outcome = this.element.querySelector(".outcome");
    this.#show("waits", paragraph("Waiting to be sent."));
  }

  async draw() {
    const [thumbnail, input] = this.element.querySelectorAll("canvas");
    const isDrawn = await draw(this.file, thumbnail, input);
    this.element.classList.toggle("undrawn", !isDrawn);
  }

  showSent() {
    this.isDone = false;
    this.needsKey = false;
    this.#show("waits", paragraph("Sent. Waiting for the answer."));
  }

  showPause(error) {
    const seconds = error.retryAfter;
    const when = seconds === 1 ? "1 second" : `${seconds} seconds`;
    this.#show("waits", paragraph(`${error.title}. Trying again in ${when}.`));
  }

  showAnswer(answer) {
    const { model, stages, roundTrip } = answer;
    this.isDone = true;
    this.#show(
      "answered",
      paragraph(answer.message, "sentence"),
      bars(answer.probabilities),
      times([...stages, ["round trip", roundTrip]]),
      paragraph(`Classified by ${model.name}, version ${model.version}.`, "quiet"),
    );
  }

  showError(error, retry) {
    this.isDone = true;
    this.needsKey = error.needsKey ?? false;
    const details = [error.code, error.requestId && `request ${error.requestId}`];
    const trace = details.filter(Boolean).join(", ");
    this.#show(
      "refused",
      paragraph(error.title ?? "The answer cannot be read", "sentence"),
      paragraph(error.needsKey ? "Enter a key above to send this picture again." : error.message),
      ...((error.isTemporary ?? true) ? [this.#retryButton(retry)] : []),
      ...(trace ? [paragraph(trace, "quiet trace")] : []),
    );
  }

  #retryButton(retry) {
    const button = element("button", "plain", "Try again");
    button.type = "button";
    button.addEventListener("click", () => {
      this.element.focus(); // the button is removed, and the focus would be lost
      this.#show("waits", paragraph("Waiting to be sent."));
      retry();
    });
    return button;
  }

  #show(state, ...children) {
    this.element.dataset.state = state;
    this.#outcome.replaceChildren(...children);
  }
}

/** The most probable classes, as text and as bars. */
function bars(probabilities) {
  const best = Object.entries(probabilities).sort(([, a], [, b]) => b - a).slice(0, MAX_BARS);
  const list = element("ol", "bars");
  list.setAttribute("role", "list"); // Safari removes the role from lists without numbers
  list.setAttribute("aria-label", "Most probable classes");
  for (const [name, probability] of best) {
    const bar = element("span", "bar");
    bar.style.setProperty("--share", probability);
    const row = element("li");
    row.append(element("span", "class", name), bar, element("span", "share", percent(probability)));
    list.append(row);
  }
  return list;
}

function times(stages) {
  const list = element("dl", "times");
  list.setAttribute("aria-label", "Time of each stage");
  for (const [stage, milliseconds] of stages) {
    const pair = element("div");
    pair.append(element("dt", "", stage), element("dd", "", `${milliseconds.toFixed(1)} ms`));
    list.append(pair);
  }
  return list;
}

/** Formats a probability. Only exactly 1 is shown as 100 %, and only exactly 0 as 0 %. */
export function percent(probability) {
  if (probability > 0.9994 && probability < 1) return "> 99.9 %";
  if (probability < 0.0005 && probability > 0) return "< 0.1 %";
  return `${(100 * probability).toFixed(1)} %`;
}

function paragraph(text, className = "") {
  return element("p", className, text);
}

function element(tag, className = "", text = "") {
  const created = document.createElement(tag);
  if (className) created.className = className;
  created.textContent = text;
  return created;
}
