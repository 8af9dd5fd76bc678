// Charts of the last quarter of an hour, drawn by uPlot in the page's own colours.

const POINTS = 180;
const COLUMNS = ["at", "done", "failed", "retried", "waiting"];
const PLOTS = { rates: ["done", "failed", "retried"], waiting: ["waiting"] };

const DASHES = { failed: [5, 3], retried: [2, 3] };
const POWERS = [...Array(10).keys()].map((each) => 10 ** each);
const CLOCK = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit" });
const clock = (seconds) => CLOCK.format(new Date(seconds * 1000));

export class Charts {
  constructor(holder, format) {
    this.holder = holder;
    this.format = format;
    this.columns = null;
    this.plots = {};
    this.load().catch(() => {});
    new ResizeObserver(() => this.resize()).observe(holder);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  async load() {
    const answer = await fetch(this.holder.dataset.charts);
    if (!answer.ok) return;
    const series = await answer.json();
    this.columns = COLUMNS.map((name) => series[name]);
    this.draw();
  }

  add(point) {
    if (!this.columns || point[0] <= this.columns[0].at(-1)) return;
    this.columns.forEach((column, at) => {
      column.push(point[at]);
      if (column.length > POINTS) column.shift();
    });
    for (const [name, plot] of Object.entries(this.plots)) plot.setData(this.data(name));
  }

  data(name) {
    return [this.columns[0], ...PLOTS[name].map((each) => this.columns[COLUMNS.indexOf(each)])];
  }

  draw() {
    if (!this.columns) return;
    const style = getComputedStyle(this.holder);
    const colour = (name) => {
      // Canvas knows no light-dark(): let a real element resolve it.
      const probe = document.createElement("i");
      probe.className = `key ${name}`;
      this.holder.append(probe);
      const found = getComputedStyle(probe).color;
      probe.remove();
      return found;
    };
    const axis = { stroke: colour("axis"), font: `11px ${style.fontFamily}`, ticks: { show: false } };
    const grid = { stroke: colour("grid"), width: 1 };
    for (const place of this.holder.querySelectorAll("[data-plot]")) {
      const name = place.dataset.plot;
      this.plots[name]?.destroy();
      place.replaceChildren();
      const series = PLOTS[name].map((each) => ({
        label: each,
        stroke: colour(each),
        fill: PLOTS[name].length === 1 ? colour("area") : undefined,
        width: 1.5,
        dash: DASHES[each],
        spanGaps: true,
        points: { show: false },
        value: (plot, value) => (value == null ? "–" : this.format(value)),
      }));
      // Messages are whole, so that a scale of halves would say nothing.
      const y = name === "waiting" ? { incrs: [1, 2, 5].flatMap((each) => POWERS.map((power) => each * power)).sort((a, b) => a - b) } : {};
      const options = {
        ...this.size(place),
        legend: { show: false },
        cursor: { y: false, drag: { x: false, y: false }, points: { size: 6 } },
        scales: { y: { range: (plot, low, high) => [0, Math.max(high * 1.1, 1)] } },
        axes: [
          { ...axis, grid: { show: false }, size: 24, space: 70, values: (plot, values) => values.map(clock) },
          { ...axis, grid, size: 44, ...y, values: (plot, values) => values.map((each) => this.format(each)) },
        ],
        series: [{}, ...series],
      };
      this.plots[name] = new window.uPlot(options, this.data(name), place);
    }
  }

  size(place) {
    return { width: Math.max(place.clientWidth, 200), height: place.clientHeight || 150 };
  }

  resize() {
    for (const [name, plot] of Object.entries(this.plots)) {
      plot.setSize(this.size(this.holder.querySelector(`[data-plot="${name}"]`)));
    }
  }
}
