// Comfort only; every page works without it.
// 1. In a context, the arrow keys move between firing tokens (Tab moves between contexts: one stop each).
// 2. Empty fields are left out of the address.
"use strict";

function moveAmongTokens(event) {
  const token = event.target.closest(".t[tabindex]");
  if (!token) return;
  const steps = { ArrowRight: 1, ArrowLeft: -1, Home: -Infinity, End: Infinity };
  const step = steps[event.key];
  if (step === undefined || event.altKey || event.ctrlKey || event.metaKey) return;
  const tokens = [...token.closest(".tokens").querySelectorAll(".t[tabindex]")];
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

document.addEventListener("keydown", moveAmongTokens);
for (const form of document.querySelectorAll("form.filters")) {
  form.addEventListener("submit", leaveOutEmpty);
}
window.addEventListener("pageshow", restoreFields);
