// Comfort only; every page works without it.
// 1. In a context, the arrow keys move between firing tokens (Tab moves between contexts: one stop each).
// 2. Empty fields are left out of the address.
// 3. In a trace the arrow keys move between token chips alike, and the chosen one is marked.
"use strict";

function moveAmongTokens(event) {
  const token = event.target.closest(".t[tabindex], a.chip[tabindex]");
  if (!token) return;
  const steps = { ArrowRight: 1, ArrowLeft: -1, Home: -Infinity, End: Infinity };
  const step = steps[event.key];
  if (step === undefined || event.altKey || event.ctrlKey || event.metaKey) return;
  const tokens = [...token.closest(".tokens, .chips").querySelectorAll(".t[tabindex], a.chip[tabindex]")];
  const wanted = tokens.indexOf(token) + step;
  const next = tokens[Math.min(Math.max(wanted, 0), tokens.length - 1)];
  event.preventDefault();
  token.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
}

function leaveOutEmpty(event) {
  for (const field of event.target.elements) {
    if (field.name && field.value === "") field.disabled = true;
  }
}

function restoreFields() {
  for (const field of document.querySelectorAll("form :disabled")) field.disabled = false;
}

function markChosen() {
  for (const chip of document.querySelectorAll("a.chip")) {
    if (chip.hash === location.hash && chip.hash) chip.setAttribute("aria-current", "true");
    else chip.removeAttribute("aria-current");
  }
}

for (const list of document.querySelectorAll(".chips")) {
  list.querySelectorAll("a.chip").forEach((chip, place) => { chip.tabIndex = place ? -1 : 0; });
}
markChosen();
window.addEventListener("hashchange", markChosen);
document.addEventListener("keydown", moveAmongTokens);
for (const form of document.querySelectorAll("form.filters")) {
  form.addEventListener("submit", leaveOutEmpty);
}
window.addEventListener("pageshow", restoreFields);
