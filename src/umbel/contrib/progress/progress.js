// <umbel-progress src="…" events="…" label="…">: how far a task is.
//
// With "events" it listens to a stream and falls back to asking; without, it asks "src" once a second. It stops when the
// task has ended, and while the page is hidden. Colours: --umbel-progress-color and --umbel-progress-track; parts: bar,
// fill, text. Events, all with what is known as "detail": "umbel-progress" at each change, "umbel-done" at the end.
//
// No inline style and no other file, so that it works under "default-src 'none'; script-src 'self'; connect-src 'self'".

const ASK = 1000, ASK_LEAST_OFTEN = 10000, PATIENCE = 3;
const WORDS = {
  PENDING: "Waiting", RECEIVED: "Waiting", STARTED: "Started", PROGRESS: "Running", RETRY: "Waiting to be tried again",
  SUCCESS: "Done", FAILURE: "Failed", REVOKED: "Cancelled",
};

const sheet = new CSSStyleSheet();
sheet.replaceSync(`
  :host { display: block; color-scheme: light dark; font: inherit;
    --_fill: var(--umbel-progress-color, #2a7446); --_track: var(--umbel-progress-track, #dfe3da); --_bad: #b3261e; }
  @media (prefers-color-scheme: dark) {
    :host { --_fill: var(--umbel-progress-color, #74c793); --_track: var(--umbel-progress-track, #2b312b);
      --_bad: #f28b82; } }
  :host([hidden]) { display: none; }
  .bar { height: .5em; border-radius: .25em; overflow: hidden; background: var(--_track); }
  .fill { height: 100%; width: 0; border-radius: inherit; background: var(--_fill); transition: width .2s; }
  .bar:not([aria-valuenow]) .fill { width: 30%; animation: to-and-fro 1.6s infinite alternate ease-in-out; }
  :host([state=FAILURE]) .fill, :host([state=REVOKED]) .fill { background: var(--_bad); }
  .text { font-size: .875em; overflow-wrap: anywhere; }
  .said { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
  @keyframes to-and-fro { to { margin-left: 70%; } }
  @media (prefers-reduced-motion: reduce) {
    .fill { transition: none; } .bar:not([aria-valuenow]) .fill { animation: none; width: 100%; opacity: .4; } }
  @media (forced-colors: active) { .bar { border: 1px solid CanvasText; } .fill { background: Highlight; } }
`);

class UmbelProgress extends HTMLElement {
  static observedAttributes = ["src", "events", "label"];
  #bar; #fill; #text; #said;
  #source = null; #timer = 0; #asked = null; #failures = 0; #polls = false; #over = false; #pending = false;
  #look = () => (document.hidden ? this.#stop() : this.#start());

  constructor() {
    super();
    const root = this.attachShadow({ mode: "open" });
    root.adoptedStyleSheets = [sheet];
    const make = (name, parent) => {
      const made = parent.appendChild(document.createElement("div"));
      made.className = name;
      if (name !== "said") made.setAttribute("part", name);
      return made;
    };
    this.#bar = make("bar", root);
    this.#fill = make("fill", this.#bar);
    this.#text = make("text", root);
    this.#said = make("said", root);
    this.#bar.setAttribute("role", "progressbar");
    this.#bar.setAttribute("aria-valuemin", "0");
    this.#bar.setAttribute("aria-valuemax", "100");
    // The bar's own text says the same to those who do not see it, without reading out every step.
    this.#text.setAttribute("aria-hidden", "true");
    this.#said.setAttribute("role", "status");
  }

  connectedCallback() {
    document.addEventListener("visibilitychange", this.#look);
    this.#again();
  }

  disconnectedCallback() {
    document.removeEventListener("visibilitychange", this.#look);
    this.#stop();
  }

  attributeChangedCallback(name) {
    if (!this.isConnected) return;
    if (name === "label") this.#name();
    else this.#again();
  }

  #name() {
    this.#bar.setAttribute("aria-label", this.getAttribute("label") || "Progress");
  }

  // Begin from nothing; once, if several attributes change together.
  #again() {
    if (this.#pending) return;
    this.#pending = true;
    queueMicrotask(() => {
      this.#pending = false;
      this.#stop();
      this.#failures = 0;
      this.#over = this.#polls = false;
      this.#name();
      this.#said.textContent = "";
      this.#show({ state: "PENDING", percent: null, text: "" });
      if (this.isConnected && !document.hidden) this.#start();
    });
  }

  #start() {
    if (this.#over || this.#source || this.#timer || this.#asked || !this.isConnected) return;
    const events = this.getAttribute("events");
    if (events && !this.#polls && "EventSource" in window) this.#listen(events);
    else if (this.getAttribute("src")) this.#ask();
  }

  #stop() {
    this.#source?.close();
    this.#asked?.abort();
    clearTimeout(this.#timer);
    this.#source = this.#asked = null;
    this.#timer = 0;
  }

  #listen(address) {
    const source = this.#source = new EventSource(address);
    source.onmessage = (event) => {
      this.#failures = 0;
      this.#take(JSON.parse(event.data));
    };
    source.onerror = () => {
      if (this.#source !== source) return;
      // A stream that ends is opened anew by the browser; one that is refused, or never tells anything, is given up.
      if (source.readyState !== EventSource.CLOSED && ++this.#failures < PATIENCE) return;
      this.#failures = 0;
      this.#polls = true;
      this.#stop();
      this.#start();
    };
  }

  async #ask() {
    const asked = this.#asked = new AbortController();
    try {
      const reply = await fetch(this.getAttribute("src"), { signal: asked.signal, headers: { accept: "application/json" } });
      if ([403, 404, 410].includes(reply.status)) {
        const told = await reply.json().catch(() => ({}));
        if (this.#asked === asked) this.#refused(told.error || "This address is not valid.");
        return;
      }
      if (!reply.ok) throw new Error(reply.statusText);
      const told = await reply.json();
      if (this.#asked !== asked) return;
      this.#failures = 0;
      this.#take(told);
    } catch {
      if (this.#asked === asked) this.#failures++;
    }
    // Taken back, or at the end.
    if (this.#asked !== asked) return;
    this.#asked = null;
    this.#timer = setTimeout(() => {
      this.#timer = 0;
      this.#start();
    }, Math.min(ASK * 2 ** this.#failures, ASK_LEAST_OFTEN));
  }

  #take(told) {
    this.#show(told);
    this.dispatchEvent(new CustomEvent("umbel-progress", { detail: told, bubbles: true }));
    if (!told.ready) return;
    if (!this.#bar.hasAttribute("aria-valuenow")) this.#fillTo(100);
    this.#end(this.#text.textContent);
    this.dispatchEvent(new CustomEvent("umbel-done", { detail: told, bubbles: true }));
  }

  #refused(words) {
    this.setAttribute("state", "REFUSED");
    this.#fillTo(0);
    this.#end(words);
  }

  #end(words) {
    this.#over = true;
    this.#stop();
    this.#text.textContent = this.#said.textContent = words;
    this.#bar.setAttribute("aria-valuetext", words);
  }

  #fillTo(percent) {
    this.#bar.setAttribute("aria-valuenow", String(percent));
    this.#fill.style.width = `${percent}%`;
  }

  #show(told) {
    this.setAttribute("state", told.state);
    if (told.percent !== null) this.#fillTo(told.percent);
    else if (!told.ready) {
      this.#bar.removeAttribute("aria-valuenow");
      this.#fill.style.width = "";
    }
    const count = told.percent !== null && !told.ready ? `${Math.floor(told.percent)} %`
      : told.percent === null && told.current ? String(told.current) : "";
    const words = [count, told.text || WORDS[told.state] || told.state].filter(Boolean).join(" · ");
    this.#text.textContent = words;
    this.#bar.setAttribute("aria-valuetext", words);
  }
}

if (!customElements.get("umbel-progress")) customElements.define("umbel-progress", UmbelProgress);
