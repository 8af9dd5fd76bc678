// The dashboard's own script. Every page can be read and every form sent without it; it adds what moves:
// live numbers, charts, pages that keep themselves fresh, the theme, and keys.

import { Charts } from "./charts.js";

const root = document.body.dataset.root;
const REFRESH = 3000;

// -- live numbers: one stream for all tabs of this browser -------------------------------------------------------

const shown = { rate: (value) => rate(value) };
let paused = false;

function rate(value) {
  if (!value) return "0";
  if (value < 1) return value.toFixed(2);
  return value < 100 ? value.toFixed(1) : Math.round(value).toLocaleString("en");
}

function tell(tick) {
  for (const place of document.querySelectorAll("[data-tick]")) {
    const value = tick[place.dataset.tick];
    if (value === undefined) continue;
    const text = (shown[place.dataset.as] || ((each) => each.toLocaleString("en")))(value);
    if (place.textContent !== text) place.textContent = text;
  }
  charts?.add(tick.bucket);
  document.dispatchEvent(new CustomEvent("umbel:tick", { detail: tick }));
}

const pulse = document.getElementById("pulse");

function say(state, text) {
  if (!pulse) return;
  pulse.dataset.state = state;
  pulse.lastElementChild.textContent = text;
  pulse.title = state === "on" ? "Live; p pauses" : text;
}

class Feed {
  // A browser opens six connections to one host at most, so tabs share one: whoever holds the lock has it.
  constructor(url) {
    this.url = url;
    this.channel = "BroadcastChannel" in window ? new BroadcastChannel(`umbel:${url}`) : null;
    this.heard = 0;
    if (this.channel) this.channel.onmessage = (message) => this.take(message.data);
    if (navigator.locks) navigator.locks.request(`umbel:${url}`, () => this.lead());
    else this.lead();
    setInterval(() => this.look(), 2000);
  }

  lead() {
    return new Promise(() => {
      const source = new EventSource(this.url);
      source.addEventListener("tick", (event) => {
        const tick = JSON.parse(event.data);
        this.take(tick);
        this.channel?.postMessage(tick);
      });
    });
  }

  take(tick) {
    this.heard = Date.now();
    if (paused) return;
    say("on", "live");
    tell(tick);
  }

  look() {
    if (!paused && Date.now() - this.heard > 5000) say("off", "not connected");
  }
}

// -- pages that keep themselves fresh ----------------------------------------------------------------------------

function busy(region) {
  const focused = document.activeElement;
  const typing = focused?.matches?.("input, textarea, select") && region.contains(focused);
  const open = document.querySelector(".sheet:popover-open");
  const selected = document.getSelection();
  return typing || open || (selected && !selected.isCollapsed);
}

async function refresh() {
  if (paused || document.hidden || pulse?.dataset.state === "off") return;
  for (const region of document.querySelectorAll("[data-refresh]")) {
    if (busy(region)) continue;
    const target = `#${region.id}`;
    await window.htmx.ajax("GET", location.pathname + location.search, {
      target,
      select: target,
      swap: "outerMorph",
    });
    localTimes();
  }
}

// -- times in the reader's own zone ------------------------------------------------------------------------------

const here = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });
const wall = new Intl.DateTimeFormat("sv", { dateStyle: "short", timeStyle: "medium" }); // 2030-01-31 18:00:00

function localTimes() {
  for (const time of document.querySelectorAll("time[datetime]")) {
    const moment = new Date(time.dateTime);
    if (!Number.isNaN(moment.getTime())) time.title = `${here.format(moment)} here, ${time.dateTime}`;
  }
  // Times that are shown in another zone: what the reader's own clock says then, where it differs.
  for (const place of document.querySelectorAll("[data-here]")) {
    const { here: moment, shown: there } = place.dataset;
    const text = wall.format(new Date(moment)).slice(0, there.length);
    const sameDay = text.slice(0, 10) === there.slice(0, 10);
    place.textContent = text === there ? "" : `· ${sameDay ? text.slice(11) : text} here`;
  }
}

// -- theme and keys ----------------------------------------------------------------------------------------------

function dark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

function turn() {
  const next = dark() ? "light" : "dark";
  document.documentElement.dataset.theme = next;
  document.cookie = `umbel_theme=${next}; path=${root || "/"}; max-age=31536000; samesite=lax`;
  charts?.draw();
}

const theme = document.getElementById("theme");
if (theme) {
  theme.hidden = false;
  theme.addEventListener("click", turn);
}

function pause() {
  paused = !paused;
  say(paused ? "paused" : "on", paused ? "paused" : "live");
}

let going = 0;

function key(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, textarea, select")) return;
  if (going && Date.now() - going < 1500) {
    going = 0;
    const link = document.querySelector(`nav a[data-key="${CSS.escape(event.key)}"]`);
    if (link) location.assign(link.href);
    return;
  }
  const filter = document.querySelector("form.filter input");
  if (event.key === "g") going = Date.now();
  else if (event.key === "p") pause();
  else if (event.key === "d") turn();
  else if (event.key === "?") document.getElementById("keys")?.togglePopover();
  else if (event.key === "/" && filter) {
    event.preventDefault();
    filter.focus();
  }
}

document.addEventListener("keydown", key);
pulse?.addEventListener("click", pause);

// -- small helps -------------------------------------------------------------------------------------------------

document.addEventListener("change", (event) => {
  const box = event.target;
  if (box.matches("form.filter select")) box.form.requestSubmit();
  if (box.matches("input[data-all]")) {
    for (const each of document.querySelectorAll(`input[name="${box.dataset.all}"]`)) each.checked = box.checked;
  }
});

document.addEventListener("click", (event) => {
  const line = event.target.closest("pre.cli");
  if (line && navigator.clipboard && document.getSelection()?.isCollapsed) {
    navigator.clipboard.writeText(line.textContent).then(() => {
      line.classList.add("copied");
      setTimeout(() => line.classList.remove("copied"), 1200);
    });
  }
});

const holder = document.querySelector("[data-charts]");
const charts = holder ? new Charts(holder, rate) : null;
localTimes();
document.querySelector("nav a[aria-current]")?.scrollIntoView({ block: "nearest", inline: "center" });
if (document.body.dataset.live) {
  new Feed(document.body.dataset.live);
  setInterval(() => refresh().catch(() => {}), REFRESH);
}
