"use strict";
const list = document.getElementById("tasks");
const button = document.getElementById("start");

function row() {
  const item = document.createElement("li");
  const bar = document.createElement("div");
  bar.className = "bar";
  bar.setAttribute("role", "progressbar");
  const fill = document.createElement("i");
  bar.append(fill);
  const line = document.createElement("div");
  line.className = "line";
  const text = document.createElement("span");
  const percent = document.createElement("span");
  line.append(text, percent);
  item.append(bar, line);
  list.prepend(item);
  return { item, bar, fill, text, percent };
}

async function follow(url, view) {
  const data = await (await fetch(url)).json();
  const percent = Math.round((data.current * 100) / data.total);
  view.fill.style.width = percent + "%";
  view.bar.setAttribute("aria-valuenow", percent);
  view.percent.textContent = percent + "%";
  view.text.textContent = data.status;
  if (data.state === "PENDING" || data.state === "PROGRESS" || data.state === "STARTED") {
    setTimeout(() => follow(url, view), 300);
  } else {
    view.item.className = data.state === "SUCCESS" ? "done" : "failed";
    if ("result" in data) view.text.textContent = data.status + " Result: " + data.result;
  }
}

button.addEventListener("click", async () => {
  const view = row();
  const answer = await fetch(button.dataset.url, { method: "POST" });
  follow(answer.headers.get("Location"), view);
});
