// The page: takes frames from the live stream, keeps the little state there is, and shows it.

import { Chart, SHOWN_MS, redraw, time } from "./chart.js";
import * as f from "./format.js";
import { Live } from "./socket.js";
import { code, fill, rowsOf, state } from "./tables.js";
import { addWindows, clearWindows, showWindows } from "./windows.js";

const $ = (id) => document.getElementById(id);
const charts = $("charts");

// What the host charts show: metrics of the source `system_metrics`.
const rate = new Chart(charts, { title: "Events in", format: f.short, names: ["events/s"] });
const latency = new Chart(charts, { title: "Latency", format: f.milliseconds, names: ["median", "99 %"] });
const waitForHost = "No system_metrics source is running";
const HOST = [
  { title: "CPU", format: f.percent, top: 100, lines: [["busy", "cpu_percent"]] },
  { title: "Memory", format: f.percent, top: 100, lines: [["used", "memory_percent"]] },
  { title: "Disk", format: f.bytesPerSecond, binary: true, lines: [["read", "disk_read_bytes_per_second"], ["written", "disk_write_bytes_per_second"]] },
  { title: "Network", format: f.bytesPerSecond, binary: true, lines: [["received", "network_received_bytes_per_second"], ["sent", "network_sent_bytes_per_second"]] },
];
const hostLines = new Map();
for (const { title, format, top, binary, lines } of HOST) {
  const chart = new Chart(charts, { title, format, top, binary, names: lines.map(([name]) => name), empty: waitForHost });
  lines.forEach(([, metric], index) => hostLines.set(metric, { chart, index }));
}

let host = null, status = null, health = null, causes = [], deadBefore = null;
const anomalies = new Map();
const rates = new Map(); // "sources/x" -> {at, count, rate}

// -- frames ------------------------------------------------------------------------------------------

function onFrame(frame) {
  time.skew = frame.at - Date.now();
  const { data } = frame;
  switch (frame.event) {
    case "hello": onHello(data); break;
    case "data_update": for (const [topic, table] of Object.entries(data)) takeRows(topic, rowsOf(table.columns)); break;
    case "metrics_update": takeStatus(data, frame.at); break;
    case "stream_status": break; // the next metrics_update shows it; here for other clients
    case "error_alert":
      if (data.kind === "component") { health = data.health; showHealth(); } else mergeCauses(data.causes);
      break;
  }
}

function onHello(data) {
  if (!data.resumed) { clearWindows(); anomalies.clear(); rate.clear(); latency.clear(); loadHistory(true); }
  const { history } = data;
  history.at.forEach((at, i) => {
    rate.add(0, at, history.ingest_per_second[i]);
    latency.add(0, at, history.p50[i]);
    latency.add(1, at, history.p99[i]);
  });
  set("version", `headrace ${data.version}`);
  health = data.health; causes = data.dead_letters;
  for (const [topic, columns] of Object.entries(data.tables)) takeRows(topic, rowsOf(columns));
  takeStatus(data.status, time.now());
  showHealth(); showDead();
}

function takeRows(topic, rows) {
  if (topic === "measurements") rows.forEach(takeMeasurement);
  else if (topic === "aggregations") { addWindows(rows); later(showWindows); }
  else if (topic === "anomalies") {
    for (const row of rows) anomalies.set(`${row.sensor_id}\n${row.metric}`, row);
    later(showAnomalies);
  }
}

function takeMeasurement({ sensor_id, metric, value, timestamp }) {
  const line = hostLines.get(metric);
  if (!line || (host !== null && host !== sensor_id)) return;
  if (host === null) { host = sensor_id; $("host-name").textContent = `this machine: ${host}`; }
  line.chart.add(line.index, Date.parse(timestamp), value);
}

function takeStatus(next, at) {
  status = next;
  rate.add(0, at, status.rates?.ingest_per_second);
  latency.add(0, at, status.latency_ms?.p50);
  latency.add(1, at, status.latency_ms?.p99);
  later(showStatus);
}

function mergeCauses(changed) {
  const key = (c) => `${c.code}\n${c.topic}\n${c.component}`;
  const all = new Map(causes.map((c) => [key(c), c]));
  for (const cause of changed) all.set(key(cause), cause);
  causes = [...all.values()];
  later(showDead);
}

// -- history -----------------------------------------------------------------------------------------

let loading = false;
/** What the host charts lack: all of it at first, later what was missed while rows came faster than the live tail. */
async function loadHistory(whole) {
  if (loading) return;
  loading = true;
  try {
    for (const [metric, { chart, index }] of hostLines) {
      const from = Math.max(time.now() - SHOWN_MS, whole ? 0 : chart.last(index) || 0);
      const query = new URLSearchParams({ metric, start_time: Math.round(from), limit: 1000 });
      if (host !== null) query.set("source_id", host);
      const answer = await fetch(`/data?${query}`);
      if (answer.ok) (await answer.json()).data.forEach(takeMeasurement);
    }
  } catch { /* the connection is lost: the banner says so */ } finally { loading = false; }
}
setInterval(() => {
  const last = hostLines.get("cpu_percent").chart.last(0);
  if (host !== null && connected && !document.hidden && time.now() - last > 5000) loadHistory(false);
}, 5000);

// -- showing: at most once a second each, only while visible ------------------------------------------

const waiting = new Set();
function later(show) {
  if (!waiting.size) setTimeout(() => { const now = [...waiting]; waiting.clear(); now.forEach((s) => s()); }, first ? 0 : 500);
  waiting.add(show);
}
let first = true;

function perSecond(key, count) {
  const now = performance.now(), before = rates.get(key);
  if (!before) { rates.set(key, { at: now, count, rate: NaN }); return NaN; }
  if (now - before.at > 1900) rates.set(key, { at: now, count, rate: Math.max(0, (count - before.count) / ((now - before.at) / 1000)) });
  return rates.get(key).rate;
}

const entries = (family) => Object.entries(status[family] ?? {}).map(([name, part]) => ({ name, ...part }));
const set = (id, text) => { const node = $(id); if (node.textContent !== text) node.textContent = text; };

function showStatus() {
  first = false;
  set("tile-rate", f.short(status.rates?.ingest_per_second));
  set("tile-p50", f.milliseconds(status.latency_ms?.p50));
  set("tile-p99", f.milliseconds(status.latency_ms?.p99));
  set("tile-log", f.bytes(status.log?.bytes));
  set("tile-log-note", `on disk, ${f.short(Object.values(status.topics ?? {}).reduce((sum, t) => sum + (t.rows ?? 0), 0))} rows`);
  const behind = entries("sinks").sort((a, b) => (b.lag_records ?? 0) - (a.lag_records ?? 0))[0];
  set("tile-lag", f.short(behind?.lag_records));
  set("tile-lag-note", behind?.lag_records ? `rows, most in ${behind.name}` : "rows");
  if (status.started_at) set("uptime", `up ${f.span(time.now() - f.toMs(status.started_at))}`);

  fill($("sources-table"), [
    { title: "Source", text: (r) => r.name }, { title: "Kind", text: (r) => r.kind },
    { title: "State", node: (r, cell) => state(cell, r.state) }, { title: "Topic", text: (r) => r.topic },
    { title: "Rate", cls: "n", text: (r) => f.perSecond(perSecond(`source ${r.name}`, r.accepted)) },
    { title: "Accepted", cls: "n", text: (r) => f.whole(r.accepted) }, { title: "Rejected", cls: "n", text: (r) => f.whole(r.rejected) },
    { title: "Control", node: control }, { title: "Last error", cls: "wide", text: (r) => r.last_error || "none" },
  ], entries("sources"), "No source is configured; HTTP push works without one.");
  fill($("pipelines-table"), [
    { title: "Pipeline", text: (r) => r.name }, { title: "State", node: (r, cell) => state(cell, r.state) },
    { title: "From", text: (r) => [r.from].flat().join(", ") }, { title: "To", text: (r) => r.to },
    { title: "Rate", cls: "n", text: (r) => f.perSecond(perSecond(`pipeline ${r.name}`, r.received)) },
    { title: "Lag", cls: "n", text: (r) => f.short(r.lag_records) },
    { title: "Received", cls: "n", text: (r) => f.whole(r.received) }, { title: "Sent", cls: "n", text: (r) => f.whole(r.sent) },
    { title: "Filtered", cls: "n", text: (r) => f.whole(r.filtered) }, { title: "Dead", cls: "n", text: (r) => f.whole(r.dead) },
    { title: "Late", cls: "n", text: (r) => f.whole(r.late) },
    { title: "Watermark", text: (r) => f.clock(f.toMs(r.watermark)) }, { title: "Last error", cls: "wide", text: (r) => r.last_error || "none" },
  ], entries("pipelines"), "No pipeline is configured.");
  fill($("sinks-table"), [
    { title: "Sink", text: (r) => r.name }, { title: "Kind", text: (r) => r.kind }, { title: "State", node: (r, cell) => state(cell, r.state) },
    { title: "Topics", text: (r) => [r.topics].flat().join(", ") },
    { title: "Lag", cls: "n", text: (r) => f.short(r.lag_records) },
    { title: "Circuit", text: (r) => r.circuit }, { title: "Retries", cls: "n", text: (r) => f.whole(r.retries) },
    { title: "Last error", cls: "wide", text: (r) => r.last_error || "none" },
  ], entries("sinks"), "No sink is configured.");
  fill($("topics-table"), [
    { title: "Topic", text: (r) => r.name }, { title: "Partitions", cls: "n", text: (r) => f.whole(r.partitions) },
    { title: "Rate", cls: "n", text: (r) => f.perSecond(r.rate) }, { title: "Rows", cls: "n", text: (r) => f.whole(r.rows) },
    { title: "Size", cls: "n", text: (r) => f.bytes(r.bytes) },
  ], entries("topics"), "There is no topic yet.");
}

function showHealth() {
  const bad = health.components.filter((c) => c.status !== "ok");
  const name = (c) => `${c.kind} ${c.name}: ${c.reason || c.status}`;
  $("health").dataset.state = health.ready ? health.status : "degraded";
  const count = health.components.length;
  let text = count === 1 ? "Healthy" : `All ${count} components are healthy`;
  if (!health.ready) text = "Starting";
  if (bad.length) text = `${bad.length} of ${count} components ${bad.length === 1 ? "needs" : "need"} a look. ${name(bad[0])}`;
  set("health-text", text);
}

function showDead() {
  const total = causes.reduce((sum, c) => sum + c.count, 0);
  const now = performance.now();
  if (!deadBefore || now - deadBefore.at > 60_000) deadBefore = { at: now, total };
  set("tile-dead", f.short(total));
  set("tile-dead-note", total > deadBefore.total ? `in all, ${f.short(total - deadBefore.total)} just now` : "in all");
  fill($("dead-table"), [
    { title: "Cause", text: (r) => r.code }, { title: "Count", cls: "n", text: (r) => f.whole(r.count) },
    { title: "Topic", text: (r) => r.topic }, { title: "Put aside by", text: (r) => r.component },
    { title: "Last", text: (r) => f.clock(f.toMs(r.last_seen)) },
    { title: "Example", cls: "wide", node: (r, cell) => code(cell, exampleText(r.example)) },
  ], [...causes].sort((a, b) => b.count - a.count).slice(0, 100), "None. Every row so far could be used.");
}

function exampleText(example) {
  if (example === null || example === undefined) return "–";
  const text = typeof example === "string" ? example : JSON.stringify(example);
  return text.length > 400 ? `${text.slice(0, 400)}…` : text;
}

function showAnomalies() {
  const rows = [...anomalies.values()].sort((a, b) => Date.parse(b.timestamp) - Date.parse(a.timestamp)).slice(0, 12);
  $("anomalies").hidden = !rows.length;
  if (!rows.length) return;
  fill($("anomalies-table"), [
    { title: "Sensor", text: (r) => r.sensor_id }, { title: "Metric", text: (r) => r.metric },
    { title: "Value", cls: "n", text: (r) => f.short(r.value) }, { title: "Score", cls: "n", text: (r) => f.short(r.score) },
    { title: "Seen", text: (r) => f.clock(Date.parse(r.timestamp)) },
  ], rows, "");
}

// -- acting ------------------------------------------------------------------------------------------

function control(row, cell) {
  let button = cell.firstElementChild;
  if (!button) {
    button = document.createElement("button");
    button.type = "button";
    button.addEventListener("click", () => act(button));
    cell.append(button);
  }
  const verb = row.state === "stopped" ? "start" : "stop";
  button.dataset.verb = verb; button.dataset.source = row.name;
  const text = verb === "start" ? "Start" : "Stop";
  if (button.textContent !== text) button.textContent = text;
  button.setAttribute("aria-label", `${text} ${row.name}`);
}

async function act(button) {
  const { verb, source } = button.dataset;
  button.disabled = true;
  try {
    const answer = await fetch(`/api/stream/${verb}`, {
      method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify({ source }),
    });
    set("action", answer.ok ? `${source}: ${verb} accepted` : (await answer.json()).detail);
  } catch { set("action", `${source}: no answer from the server`); } finally { button.disabled = false; }
}

let connected = false;
function onState(live, silentMs) {
  connected = live;
  const banner = $("banner");
  banner.hidden = live;
  if (live) return;
  const text = silentMs === null ? "No connection to headrace yet. Trying again…" : `Connection lost. Last data ${f.span(silentMs)} ago. Trying again…`;
  // Read out once, not every second.
  banner.setAttribute("aria-live", banner.textContent ? "off" : "polite");
  set("banner", text);
}

$("curl").textContent = `curl -X POST ${location.origin}/ingest \\
  -H 'Content-Type: application/json' \\
  -d '{"source_id": "demo-1", "payload": {"temperature": 21.5}}'`;
$("copy").addEventListener("click", async () => {
  const text = $("curl").textContent;
  try {
    await navigator.clipboard.writeText(text);
    $("copy").textContent = "Copied";
  } catch {
    getSelection().selectAllChildren($("curl"));
    $("copy").textContent = "Press Ctrl+C";
  }
  setTimeout(() => ($("copy").textContent = "Copy"), 2000);
});
for (const id of ["windows-filter", "windows-sort"]) $(id).addEventListener("input", showWindows);

setInterval(() => { if (!document.hidden) redraw(); }, 1000);
showWindows();
new Live(onFrame, onState);
