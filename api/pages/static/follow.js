// A running job's page follows its events; without this script the page loads itself again every three seconds.
"use strict";

const place = document.getElementById("progress");
const list = document.getElementById("event-list");
let seen = Number(place.dataset.seen);

function told(kind, data) {
  return Object.entries(data).map(([name, value]) => (name === kind ? `${value}` : `${name} ${value}`)).join(", ");
}

function show(message) {
  const event = JSON.parse(message.data);
  if (event.number <= seen) return;
  seen = event.number;
  const line = document.createElement("li");
  line.textContent = `${event.at.slice(0, 19).replace("T", " ")} ${event.kind} ${told(event.kind, event.data)}`;
  list.append(line);
  if (event.kind === "progress") {
    const { step, n_done: done, n_total: total } = event.data;
    const bar = document.createElement("progress");
    bar.setAttribute("aria-label", step);
    if (total) {
      bar.max = total;
      bar.value = done;
    }
    const text = document.createElement("span");
    text.className = "num";
    text.textContent = ` ${step}: ${done}${total ? ` of ${total}` : ""}`;
    place.replaceChildren(bar, text);
  } else if (event.kind === "state") {
    location.reload();
  }
}

const source = new EventSource(place.dataset.events);
for (const kind of ["state", "progress", "cancel-requested", "lease-expired"]) source.addEventListener(kind, show);
