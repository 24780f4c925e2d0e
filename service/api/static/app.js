// Wires the page: pictures come in, each gets a card, at most four are asked about at a time.

import { Card, percent } from "./card.js";
import * as live from "./live.js";
import { lanes, predictPatiently, useKey } from "./predict.js";

const AT_A_TIME = 4;
const LOGGED = 20;
const byId = (id) => document.getElementById(id);
const inLane = lanes(AT_A_TIME);

let cards = [];
let leaving = new AbortController();

function take(files) {
  byId("notice").hidden = files.length > 0;
  if (files.length === 0) {
    byId("notice").textContent = "That was no file. Save the picture first, then drop it here.";
    tell(byId("notice").textContent);
  }
  const added = [...files].map((file) => new Card(file));
  cards = [...added, ...cards];
  byId("cards").prepend(...added.map((card) => card.element));
  for (const card of added) enqueue(card);
  showProgress();
}

function enqueue(card) {
  const { signal } = leaving; // that of now: a later one belongs to other cards
  inLane(() => classify(card, signal));
}

async function classify(card, signal) {
  if (signal.aborted) return;
  card.sends();
  showProgress();
  const drawn = card.draw();
  try {
    const answer = await predictPatiently(card.file, signal, (refusal) => card.pauses(refusal));
    card.answers(answer);
    tell(`${card.name}: ${answer.class}, ${percent(answer.probability)}`);
  } catch (error) {
    if (signal.aborted) return;
    card.fails(error, () => enqueue(card));
    if (error.wantsKey) byId("unlock").hidden = false;
    tell(`${card.name}: ${error.message}`);
  }
  showProgress();
  await drawn; // the lane is free when memory for the picture is, too
}

function showProgress() {
  const done = cards.filter((card) => card.isDone).length;
  byId("results").hidden = cards.length === 0;
  byId("progress").textContent = done < cards.length ? `${done} of ${cards.length}` : "";
}

/** For screen readers, which hear of each outcome as it comes. */
function tell(text) {
  const line = document.createElement("p");
  line.textContent = text;
  byId("log").append(line);
  if (byId("log").childElementCount > LOGGED) byId("log").firstElementChild.remove();
}

function clear() {
  leaving.abort();
  leaving = new AbortController();
  cards = [];
  byId("cards").replaceChildren();
  byId("log").replaceChildren();
  showProgress();
  byId("choose").focus();
}

function unlock(event) {
  event.preventDefault();
  useKey(byId("key").value.trim());
  byId("key").value = "";
  byId("unlock").hidden = true;
  byId("choose").focus();
  for (const card of cards.filter((each) => each.wantsKey)) enqueue(card);
}

function opens(button, input) {
  byId(button).addEventListener("click", () => byId(input).click());
  byId(input).addEventListener("change", ({ target }) => {
    take(target.files);
    target.value = ""; // so that the same file can be chosen again
  });
}

/** Anywhere on the page: a picture dropped beside the zone must not replace the page. */
function acceptDrops() {
  const highlight = (on) => byId("zone").classList.toggle("over", on);
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    highlight(true);
  });
  document.addEventListener("dragleave", (event) => {
    if (event.relatedTarget === null) highlight(false);
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    highlight(false);
    take(event.dataTransfer.files);
  });
}

opens("choose", "files");
opens("photograph", "camera");
acceptDrops();
document.addEventListener("paste", ({ clipboardData }) => {
  if (clipboardData.files.length > 0) take(clipboardData.files);
});
byId("clear").addEventListener("click", clear);
byId("unlock").addEventListener("submit", unlock);
live.start();
