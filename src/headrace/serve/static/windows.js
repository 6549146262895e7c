// The table of latest windows: the newest of each sensor, metric and period, filtered and sorted.

import * as f from "./format.js";
import { fill } from "./tables.js";

const KEEP = 5000;
const SHOWN = 60;
const $ = (id) => document.getElementById(id);
const pick = (row, ...names) => { for (const name of names) if (row[name] !== undefined && row[name] !== null) return row[name]; return undefined; };
const latest = new Map();
const usual = new Map(); // metric and period -> running mean and spread of the windows' averages

export function clearWindows() { latest.clear(); usual.clear(); }

export function addWindows(rows) {
  for (const row of rows) {
    const start = f.toMs(pick(row, "window_start", "timestamp")), end = f.toMs(pick(row, "window_end"));
    const period = row.period ?? (end > start ? f.span(end - start) : "");
    const window = {
      sensor: row.sensor_id ?? row.source_id ?? "", metric: row.metric ?? "", period, start,
      count: pick(row, "count", "event_count"), avg: pick(row, "avg_value", "avg", "mean"),
      min: pick(row, "min_value", "min"), max: pick(row, "max_value", "max"), stddev: pick(row, "stddev_value", "stddev"),
    };
    const key = `${window.sensor}\n${window.metric}\n${window.period}`;
    const before = latest.get(key);
    if (before && before.start > start) continue;
    window.odd = oddness(window);
    latest.delete(key); // so that the map stays in order of news
    latest.set(key, window);
  }
  for (const key of latest.keys()) { if (latest.size <= KEEP) break; latest.delete(key); }
}

/** How many spreads the average lies from what is usual for its metric over all sensors: a hint where to look. */
function oddness({ metric, period, avg }) {
  if (typeof avg !== "number") return 0;
  const key = `${metric}\n${period}`;
  const s = usual.get(key) ?? { n: 0, mean: avg, spread: 0 };
  usual.set(key, s);
  const score = s.n > 20 && s.spread > 0 ? Math.abs(avg - s.mean) / Math.sqrt(s.spread) : 0;
  const weight = 1 / Math.min(++s.n, 500);
  const step = avg - s.mean;
  s.mean += weight * step;
  s.spread = (1 - weight) * (s.spread + weight * step * step);
  return score;
}

const ORDERS = {
  odd: (a, b) => b.odd - a.odd || b.start - a.start,
  new: (a, b) => b.start - a.start || a.sensor.localeCompare(b.sensor),
  name: (a, b) => a.sensor.localeCompare(b.sensor) || a.metric.localeCompare(b.metric) || a.period.localeCompare(b.period),
};

export function showWindows() {
  const words = $("windows-filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const all = [...latest.values()];
  const found = all.filter((w) => words.every((word) => `${w.sensor} ${w.metric} ${w.period}`.toLowerCase().includes(word)));
  found.sort(ORDERS[$("windows-sort").value]);
  fill($("windows-table"), [
    { title: "Sensor", text: (r) => r.sensor }, { title: "Metric", text: (r) => r.metric },
    { title: "Average", cls: "n", text: (r) => f.short(r.avg), mark: (r) => (r.odd > 4 ? "odd" : "") },
    { title: "From usual", cls: "n", text: (r) => (r.odd ? `${r.odd.toFixed(1)} σ` : "–"), mark: (r) => (r.odd > 4 ? "odd" : "") },
    { title: "Lowest", cls: "n", text: (r) => f.short(r.min) }, { title: "Highest", cls: "n", text: (r) => f.short(r.max) },
    { title: "Rows", cls: "n", text: (r) => f.whole(r.count) }, { title: "Period", text: (r) => r.period }, { title: "From", text: (r) => f.clock(r.start) },
  ], found.slice(0, SHOWN), all.length ? "Nothing fits the filter." : "No window is complete yet. The first ones come about ten seconds after the first events.");
  $("windows-note").textContent = found.length > SHOWN ? `${SHOWN} of ${f.whole(found.length)} shown; filter to see others.` : "";
}
