// Line charts on canvas: the last minutes of a few series, one shared time axis, one shared cursor.
// A chart is drawn at most once a frame, and only when it has news and can be seen.

import { clock } from "./format.js";

const KEEP_MS = 11 * 60_000;
export const SHOWN_MS = 5 * 60_000;
const LEFT = 66, RIGHT = 8, TOP = 8, BOTTOM = 20;
const charts = new Set();
let cursor = null; // 0..1 over the time axis, the same on all charts
let colours = null;
let asked = false;

/** Time that the right edge stands for: the server's clock as last heard. */
export const time = { skew: 0, now: () => Date.now() + time.skew };

export class Chart {
  constructor(parent, { title, format, names, top = null, binary = false, empty = "No data yet" }) {
    this.title = title; this.format = format; this.top = top; this.binary = binary; this.empty = empty;
    this.series = names.map((name) => ({ name, times: [], values: [] }));
    const figure = document.createElement("figure");
    const caption = document.createElement("figcaption");
    const strong = document.createElement("strong");
    strong.textContent = title;
    caption.append(strong);
    this.keys = names.map((name, i) => {
      const key = document.createElement("span");
      key.className = i ? "key second" : "key";
      key.textContent = name;
      caption.append(key);
      return key;
    });
    this.canvas = document.createElement("canvas");
    this.canvas.tabIndex = 0;
    this.canvas.setAttribute("role", "img");
    figure.append(caption, this.canvas);
    parent.append(figure);
    this.seen = true; this.dirty = true; this.described = 0;
    this.canvas.addEventListener("pointermove", (e) => {
      const box = this.canvas.getBoundingClientRect();
      move((e.clientX - box.left - LEFT) / (box.width - LEFT - RIGHT));
    });
    this.canvas.addEventListener("pointerleave", () => move(null));
    this.canvas.addEventListener("blur", () => move(null));
    this.canvas.addEventListener("keydown", (e) => {
      const step = { ArrowLeft: -0.01, ArrowRight: 0.01 }[e.key];
      if (step) { e.preventDefault(); move(Math.min(1, Math.max(0, (cursor ?? 1) + step))); this.describe(true); }
      if (e.key === "Escape") move(null);
    });
    new ResizeObserver(() => this.touch()).observe(this.canvas);
    new IntersectionObserver(([entry]) => { this.seen = entry.isIntersecting; this.touch(); }).observe(this.canvas);
    charts.add(this);
    this.touch();
  }

  /** Add a point; points older than what is there already are put in order. */
  add(index, ms, value) {
    const { times, values } = this.series[index];
    if (!Number.isFinite(ms) || typeof value !== "number") return;
    let at = times.length;
    while (at && times[at - 1] > ms) at--;
    if (at && times[at - 1] === ms) { values[at - 1] = value; return; }
    times.splice(at, 0, ms); values.splice(at, 0, value);
    if (times.length > 4000 || times[0] < ms - KEEP_MS) {
      const old = times.findIndex((t) => t >= ms - KEEP_MS);
      const cut = Math.max(old, times.length - 4000);
      times.splice(0, cut); values.splice(0, cut);
    }
    this.touch();
  }

  clear() { for (const s of this.series) { s.times.length = 0; s.values.length = 0; } this.touch(); }

  last(index) { return this.series[index].times.at(-1) ?? NaN; }

  touch() { this.dirty = true; if (!asked) { asked = true; requestAnimationFrame(drawAll); } }

  draw() {
    const { canvas } = this;
    const width = canvas.clientWidth, height = canvas.clientHeight, ratio = Math.min(devicePixelRatio || 1, 2);
    if (!width) return;
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
      canvas.width = Math.round(width * ratio); canvas.height = Math.round(height * ratio);
    }
    const g = canvas.getContext("2d");
    g.setTransform(ratio, 0, 0, ratio, 0, 0);
    g.clearRect(0, 0, width, height);
    g.font = "11px system-ui, sans-serif";
    const end = time.now(), start = end - SHOWN_MS;
    const w = width - LEFT - RIGHT, h = height - TOP - BOTTOM;
    let high = 0, any = false;
    for (const s of this.series)
      for (let i = s.times.length; i-- && s.times[i] >= start;) { any = true; if (s.values[i] > high) high = s.values[i]; }
    const [top, step] = this.top ? [this.top, this.top / 4] : nice(high, this.binary);
    const x = (t) => LEFT + ((t - start) / SHOWN_MS) * w;
    const y = (v) => TOP + h - (Math.min(v, top) / top) * h;

    g.lineWidth = 1; g.textBaseline = "middle"; g.textAlign = "right";
    for (let v = 0; v <= top * 1.001; v += step) {
      const at = Math.round(y(v)) + 0.5;
      g.strokeStyle = colours.grid;
      g.beginPath(); g.moveTo(LEFT, at); g.lineTo(width - RIGHT, at); g.stroke();
      g.fillStyle = colours.axis; g.fillText(this.format(v), LEFT - 6, at);
    }
    g.textBaseline = "alphabetic"; g.textAlign = "center";
    for (let t = Math.ceil(start / 60_000) * 60_000; t <= end; t += 60_000) {
      const at = x(t);
      if (at > LEFT + 14 && at < width - RIGHT - 10) g.fillText(clock(t).slice(0, 5), at, height - 5);
    }
    if (!any) { g.fillStyle = colours.axis; g.fillText(this.empty, LEFT + w / 2, TOP + h / 2 - 12); }

    const moment = cursor === null ? null : start + cursor * SHOWN_MS;
    this.series.forEach((s, index) => {
      const colour = index ? colours.s2 : colours.s1;
      let first = s.times.length;
      while (first && s.times[first - 1] >= start) first--;
      if (first) first--;
      g.save();
      g.beginPath(); g.rect(LEFT, 0, w, height); g.clip();
      line(g, s, first, x, y, TOP + h, colour, this.series.length === 1);
      g.restore();
      let shown = s.values.length - 1;
      if (moment !== null) {
        shown = nearest(s.times, moment);
        if (shown >= 0) { g.fillStyle = colour; g.beginPath(); g.arc(x(s.times[shown]), y(s.values[shown]), 3, 0, 7); g.fill(); }
      }
      this.keys[index].textContent = `${s.name} ${shown >= 0 ? this.format(s.values[shown]) : "–"}`;
    });
    if (moment !== null) {
      g.strokeStyle = colours.axis; g.setLineDash([3, 3]);
      g.beginPath(); g.moveTo(x(moment), TOP); g.lineTo(x(moment), TOP + h); g.stroke(); g.setLineDash([]);
      g.fillStyle = colours.axis; g.textAlign = cursor > 0.8 ? "right" : "left";
      g.fillText(clock(moment), x(moment) + (cursor > 0.8 ? -5 : 5), TOP + 9);
    }
    this.describe(false);
  }

  /** The chart in words, for those who don't see it; rarely, so that nothing chatters. */
  describe(now) {
    if (!now && performance.now() - this.described < 5000) return;
    this.described = performance.now();
    const parts = this.series.map((s) => {
      if (!s.values.length) return `${s.name}: no data`;
      const at = cursor === null ? s.values.length - 1 : nearest(s.times, time.now() - SHOWN_MS * (1 - cursor));
      let low = Infinity, high = -Infinity;
      for (const v of s.values) { if (v < low) low = v; if (v > high) high = v; }
      return `${s.name}: ${this.format(s.values[at])} at ${clock(s.times[at])}, between ${this.format(low)} and ${this.format(high)}`;
    });
    this.canvas.setAttribute("aria-label", `${this.title}, last five minutes. ${parts.join(". ")}`);
  }
}

/** A gap in the data is a gap in the line: nothing is drawn over more than ten usual distances. */
function line(g, s, first, x, y, floor, colour, filled) {
  const { times, values } = s;
  const count = times.length - first;
  if (count < 1) return;
  const usual = count > 2 ? (times.at(-1) - times[first]) / (count - 1) : Infinity;
  const gap = Math.max(5000, usual * 10);
  const runs = [];
  for (let i = first, run = null; i < times.length; i++) {
    if (!run || times[i] - times[i - 1] > gap) runs.push((run = []));
    run.push(i);
  }
  g.strokeStyle = colour; g.fillStyle = colour; g.lineWidth = 1.6; g.lineJoin = "round";
  for (const run of runs) {
    if (run.length === 1) { g.beginPath(); g.arc(x(times[run[0]]), y(values[run[0]]), 1.6, 0, 7); g.fill(); continue; }
    g.beginPath();
    run.forEach((i, n) => (n ? g.lineTo(x(times[i]), y(values[i])) : g.moveTo(x(times[i]), y(values[i]))));
    g.stroke();
    if (!filled) continue;
    g.lineTo(x(times[run.at(-1)]), floor); g.lineTo(x(times[run[0]]), floor); g.closePath();
    g.globalAlpha = colours.fill; g.fill(); g.globalAlpha = 1;
  }
}

/** A round upper end of the axis and the distance of its lines; sizes are round in KiB, MiB, GiB. */
function nice(high, binary) {
  if (!(high > 0)) return binary ? [4096, 1024] : [1, 0.25];
  const unit = binary ? 1024 ** Math.max(0, Math.floor(Math.log2(high * 1.045) / 10)) : 1;
  const power = 10 ** Math.floor(Math.log10(high / unit / 4));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s * 4 >= (high / unit) * 1.02) ?? 20 * power;
  return [step * 4 * unit, step * unit];
}

function nearest(times, moment) {
  let low = 0, high = times.length - 1;
  while (low < high) { const mid = (low + high) >> 1; if (times[mid] < moment) low = mid + 1; else high = mid; }
  if (low > 0 && moment - times[low - 1] < times[low] - moment) low--;
  return low;
}

function move(to) {
  cursor = to === null || to < 0 || to > 1 ? null : to;
  for (const chart of charts) chart.touch();
}

function drawAll() {
  asked = false;
  if (!colours) readColours();
  for (const chart of charts) {
    if (chart.dirty && chart.seen) { chart.dirty = false; chart.draw(); } else if (!chart.seen) chart.describe(false);
  }
}

function readColours() {
  const style = getComputedStyle(document.documentElement);
  const get = (name) => style.getPropertyValue(name).trim();
  colours = { grid: get("--grid"), axis: get("--axis"), s1: get("--s1"), s2: get("--s2"), fill: Number(get("--fill")) };
}

export function redraw() { for (const chart of charts) chart.touch(); }

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { colours = null; redraw(); });
