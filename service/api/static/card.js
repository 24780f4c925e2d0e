// One picture on the page and what became of it.

import { draw } from "./picture.js";

const TOP = 5;
const template = document.getElementById("card");

export class Card {
  #outcome;

  constructor(file) {
    this.file = file;
    this.name = file.name || "Pasted picture";
    this.isDone = false;
    this.wantsKey = false;
    this.element = template.content.firstElementChild.cloneNode(true);
    this.element.querySelector("h3").textContent = this.name;
    this.#outcome = this.element.querySelector(".outcome");
    this.#show("waits", paragraph("Waits for its turn."));
  }

  async draw() {
    const [thumbnail, seen] = this.element.querySelectorAll("canvas");
    const isDrawn = await draw(this.file, thumbnail, seen);
    this.element.classList.toggle("undrawn", !isDrawn);
  }

  sends() {
    this.isDone = false;
    this.wantsKey = false;
    this.#show("waits", paragraph("Sent. Waits for the answer."));
  }

  pauses(refusal) {
    const seconds = refusal.retryAfter;
    const when = seconds === 1 ? "a second" : `${seconds} seconds`;
    this.#show("waits", paragraph(`${refusal.title}. Tries again in ${when}.`));
  }

  answers(answer) {
    const { model, stages, roundTrip } = answer;
    this.isDone = true;
    this.#show(
      "answered",
      paragraph(answer.message, "sentence"),
      bars(answer.probabilities),
      times([...stages, ["there and back", roundTrip]]),
      paragraph(`Answered by ${model.name}, version ${model.version}.`, "quiet"),
    );
  }

  fails(refusal, retry) {
    this.isDone = true;
    this.wantsKey = refusal.wantsKey ?? false;
    const traces = [refusal.code, refusal.requestId && `request ${refusal.requestId}`];
    const trace = traces.filter(Boolean).join(", ");
    this.#show(
      "refused",
      paragraph(refusal.title ?? "The answer cannot be read", "sentence"),
      paragraph(refusal.wantsKey ? "Enter a key above, and this picture is sent again." : refusal.message),
      ...((refusal.isPassing ?? true) ? [this.#retryButton(retry)] : []),
      ...(trace ? [paragraph(trace, "quiet trace")] : []),
    );
  }

  #retryButton(retry) {
    const button = element("button", "plain", "Try again");
    button.type = "button";
    button.addEventListener("click", () => {
      this.element.focus(); // the button is about to go, and would take the focus with it
      this.#show("waits", paragraph("Waits for its turn."));
      retry();
    });
    return button;
  }

  #show(state, ...children) {
    this.element.dataset.state = state;
    this.#outcome.replaceChildren(...children);
  }
}

/** The most probable classes, as words for everyone and as bars for those who see them. */
function bars(probabilities) {
  const best = Object.entries(probabilities).sort(([, a], [, b]) => b - a).slice(0, TOP);
  const list = element("ol", "bars");
  list.setAttribute("role", "list"); // Safari takes it away where no numbers are shown
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

function times(pairs) {
  const list = element("dl", "times");
  list.setAttribute("aria-label", "Where the time went");
  for (const [stage, milliseconds] of pairs) {
    const pair = element("div");
    pair.append(element("dt", "", stage), element("dd", "", `${milliseconds.toFixed(1)} ms`));
    list.append(pair);
  }
  return list;
}

/** Rounded, and never to a certainty that the network does not have. */
export function percent(probability) {
  if (probability > 0.9994 && probability < 1) return "> 99.9 %";
  if (probability < 0.0005 && probability > 0) return "< 0.1 %";
  return `${(100 * probability).toFixed(1)} %`;
}

function paragraph(text, className = "") {
  return element("p", className, text);
}

function element(tag, className = "", text = "") {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.textContent = text;
  return made;
}
