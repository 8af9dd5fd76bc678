"use strict";
const list = document.getElementById("tasks");
const button = document.getElementById("start");
const LABELS = { PENDING: "waiting", STARTED: "running", PROGRESS: "running", RETRY: "waiting", SUCCESS: "done" };
let count = 0;

function element(parent, tag, className) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  parent.append(made);
  return made;
}

/* One task on the page: a heading, a bar, a line of text. */
function row() {
  const item = document.createElement("li");
  const head = element(item, "div", "head");
  element(head, "span").textContent = "Task " + ++count;
  const state = element(head, "span", "state");
  const bar = element(item, "div", "bar");
  bar.setAttribute("role", "progressbar");
  bar.setAttribute("aria-label", "Task " + count);
  const fill = element(bar, "i");
  const line = element(item, "div", "line");
  const text = element(line, "span");
  const percent = element(line, "span");
  list.prepend(item);
  return { item, state, bar, fill, text, percent };
}

function show(view, label, text) {
  view.item.className = label;
  view.state.textContent = label;
  view.text.textContent = text;
}

async function follow(url, view) {
  let data;
  try {
    const answer = await fetch(url);
    if (!answer.ok) throw new Error("the server answered " + answer.status);
    data = await answer.json();
  } catch (error) {
    // The task goes on without us; ask again.
    view.text.textContent = "Cannot ask for it: " + error.message;
    setTimeout(() => follow(url, view), 2000);
    return;
  }
  const label = LABELS[data.state] || "failed";
  const percent = Math.round((data.current * 100) / data.total);
  view.fill.style.width = percent + "%";
  view.bar.setAttribute("aria-valuenow", percent);
  view.percent.textContent = percent + "%";
  show(view, label, "result" in data ? data.status + " Result: " + data.result : data.status);
  if (label === "waiting" || label === "running") setTimeout(() => follow(url, view), 300);
}

button.addEventListener("click", async () => {
  const view = row();
  show(view, "waiting", "Sending the task…");
  try {
    const answer = await fetch(button.dataset.url, { method: "POST" });
    if (!answer.ok) throw new Error("the server answered " + answer.status);
    follow(answer.headers.get("Location"), view);
  } catch (error) {
    show(view, "failed", "It could not be sent: " + error.message);
  }
});
