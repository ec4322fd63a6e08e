// Keeps the page up to date, and sends its form. Without this script the page works too, as it was when it was loaded.
"use strict";

const PAUSE = 2000;
const LONGEST_PAUSE = 10000;
const TOKEN = "outbox-token";

const connection = document.getElementById("connection");
const form = document.getElementById("dead-letters");
const token = document.getElementById("token");
let pause = PAUSE;
let timer;

// Puts in what has changed, and leaves open, ticked and focused what was.
function update(text) {
  const page = new DOMParser().parseFromString(text, "text/html");
  // Something between may have answered in the relay's place.
  if (!page.getElementById("connection")) throw new Error("no status page");
  if (parts(page) !== parts(document)) return location.reload();
  for (const old of document.querySelectorAll("[data-live]")) {
    const fresh = page.getElementById(old.id);
    if (fresh.outerHTML === old.dataset.was) continue;
    const was = fresh.outerHTML;
    for (const open of old.querySelectorAll("details[open][id]")) {
      const again = fresh.querySelector("#" + CSS.escape(open.id));
      if (again) again.open = true;
    }
    for (const ticked of old.querySelectorAll("input:checked[id]")) {
      const again = fresh.querySelector("#" + CSS.escape(ticked.id));
      if (again) again.checked = true;
    }
    const focused = old.contains(document.activeElement) ? place(document.activeElement) : null;
    old.replaceWith(document.adoptNode(fresh));
    fresh.dataset.was = was;
    if (focused) fresh.querySelector(focused)?.focus({ preventScroll: true });
  }
  document.title = page.title;
}

// Which parts a page has: it has fewer while the database is away.
function parts(page) {
  return Array.from(page.querySelectorAll("[data-live]"), (part) => part.id).join();
}

// Where an element is, to find it in the page that follows.
function place(element) {
  if (element.id) return "#" + CSS.escape(element.id);
  if (element.matches("summary")) return "#" + CSS.escape(element.parentElement.id) + " > summary";
  if (element.matches("a[href]")) return 'a[href="' + CSS.escape(element.getAttribute("href")) + '"]';
  return null;
}

function say(text) {
  if (connection.textContent !== text) connection.textContent = text;
}

async function look() {
  clearTimeout(timer);
  if (document.hidden) return;
  try {
    const answer = await fetch(location.href, { signal: AbortSignal.timeout(10000) });
    update(await answer.text());
    pause = PAUSE;
    say("");
  } catch {
    pause = Math.min(pause * 2, LONGEST_PAUSE);
    say(" · The relay does not answer. Trying again.");
  }
  clearTimeout(timer);
  timer = setTimeout(look, pause);
}

async function send(event) {
  event.preventDefault();
  const button = event.submitter;
  const said = document.getElementById("answer");
  const fields = new URLSearchParams(new FormData(form, button));
  button.disabled = true;
  try {
    const answer = await fetch(form.action, { method: "POST", body: fields });
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    said.textContent = page.getElementById("answer")?.textContent ?? "The relay's answer makes no sense.";
    said.className = answer.ok ? "notice good" : "notice bad";
    if (answer.ok) sessionStorage.setItem(TOKEN, token.value);
    else if (answer.status === 403) sessionStorage.removeItem(TOKEN);
  } catch {
    said.textContent = "The relay does not answer. It is not known whether anything was changed.";
    said.className = "notice bad";
  }
  button.disabled = false;
  look();
}

if (connection) {
  for (const live of document.querySelectorAll("[data-live]")) live.dataset.was = live.outerHTML;
  document.addEventListener("visibilitychange", look);
  timer = setTimeout(look, PAUSE);
}
if (token) {
  token.value = sessionStorage.getItem(TOKEN) ?? "";
  form.addEventListener("submit", send);
}
