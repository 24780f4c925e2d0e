// Controls the page: shows a card for each added picture. Sends at most four pictures at the same
// time.

import { Card, percent } from "./card.js";
import * as live from "./live.js";
import { createQueue, predictWithRetry, setKey } from "./predict.js";

const MAX_CONCURRENT = 4;
const MAX_LOG_LINES = 20;
const byId = (id) => document.getElementById(id);
const runQueued = createQueue(MAX_CONCURRENT);

let cards = [];
let clearing = new AbortController();

function addFiles(files) {
  byId("notice").hidden = files.length > 0;
  if (files.length === 0) {
    byId("notice").textContent = "This is not a file. Save the picture first, then drop it here.";
    announce(byId("notice").textContent);
  }
  const added = [...files].map((file) => new Card(file));
  cards = [...added, ...cards];
  byId("cards").prepend(...added.map((card) => card.element));
  for (const card of added) enqueue(card);
  showProgress();
}

function enqueue(card) {
  const { signal } = clearing; // `clear` replaces `clearing` for the cards that are added later
  runQueued(() => classify(card, signal));
}

async function classify(card, signal) {
  if (signal.aborted) return;
  card.showSent();
  showProgress();
  const drawn = card.draw();
  try {
    const answer = await predictWithRetry(card.file, signal, (error) => card.showPause(error));
    card.showAnswer(answer);
    announce(`${card.name}: ${answer.class}, ${percent(answer.probability)}`);
  } catch (error) {
    if (signal.aborted) return;
    card.showError(error, () => enqueue(card));
    if (error.needsKey) byId("unlock").hidden = false;
    announce(`${card.name}: ${error.message}`);
  }
  showProgress();
  await drawn; // the next picture starts when the memory of this picture is free
}

function showProgress() {
  const done = cards.filter((card) => card.isDone).length;
  byId("results").hidden = cards.length === 0;
  byId("progress").textContent = done < cards.length ? `${done} of ${cards.length}` : "";
}

/** Adds a line to the log that screen readers read aloud. */
function announce(text) {
  const line = document.createElement("p");
  line.textContent = text;
  byId("log").append(line);
  if (byId("log").childElementCount > MAX_LOG_LINES) byId("log").firstElementChild.remove();
}

function clear() {
  clearing.abort();
  clearing = new AbortController();
  cards = [];
  byId("cards").replaceChildren();
  byId("log").replaceChildren();
  showProgress();
  byId("choose").focus();
}

function unlock(event) {
  event.preventDefault();
  setKey(byId("key").value.trim());
  byId("key").value = "";
  byId("unlock").hidden = true;
  byId("choose").focus();
  for (const card of cards.filter((card) => card.needsKey)) enqueue(card);
}

/** Lets a button open the dialog of a file input. */
function connect(button, input) {
  byId(button).addEventListener("click", () => byId(input).click());
  byId(input).addEventListener("change", ({ target }) => {
    addFiles(target.files);
    target.value = ""; // so that the same file can be chosen again
  });
}

/** Accepts drops on the whole page. Otherwise, a drop beside the zone would replace the page. */
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
    addFiles(event.dataTransfer.files);
  });
}

connect("choose", "files");
connect("photograph", "camera");
acceptDrops();
document.addEventListener("paste", ({ clipboardData }) => {
  if (clipboardData.files.length > 0) addFiles(clipboardData.files);
});
byId("clear").addEventListener("click", clear);
byId("unlock").addEventListener("submit", unlock);
live.start();
