// Numbers and times as people read them.

const SMALL = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });
const WHOLE = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const CLOCK = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const NONE = "–";

const known = (x) => typeof x === "number" && Number.isFinite(x);

/** 1234567 -> "1,234,567" */
export const whole = (x) => (known(x) ? WHOLE.format(x) : NONE);

/** Three digits, large ones with k, M, G: 48,123 -> "48.1 k" */
export function short(x) {
  if (!known(x)) return NONE;
  const size = Math.abs(x);
  if (size >= 1e9) return `${SMALL.format(x / 1e9)} G`;
  if (size >= 1e6) return `${SMALL.format(x / 1e6)} M`;
  if (size >= 1e4) return `${SMALL.format(x / 1e3)} k`;
  return size >= 100 ? WHOLE.format(x) : SMALL.format(x);
}

export const percent = (x) => (known(x) ? `${SMALL.format(x)} %` : NONE);
export const perSecond = (x) => (known(x) ? `${short(x)}/s` : NONE);

export function bytes(x) {
  if (!known(x)) return NONE;
  for (const [factor, unit] of [[2 ** 40, "TiB"], [2 ** 30, "GiB"], [2 ** 20, "MiB"], [2 ** 10, "KiB"]])
    if (Math.abs(x) >= factor) return `${SMALL.format(x / factor)} ${unit}`;
  return `${WHOLE.format(x)} B`;
}
export const bytesPerSecond = (x) => (known(x) ? `${bytes(x)}/s` : NONE);

export function milliseconds(x) {
  if (!known(x)) return NONE;
  return x >= 10_000 ? `${SMALL.format(x / 1000)} s` : `${SMALL.format(x)} ms`;
}

/** A time as text or epoch (s, ms or µs) to milliseconds, NaN when there is none. */
export function toMs(value) {
  if (typeof value === "number") return Math.abs(value) < 1e11 ? value * 1e3 : Math.abs(value) < 1e14 ? value : value / 1e3;
  return typeof value === "string" ? Date.parse(value) : NaN;
}

export const clock = (ms) => (Number.isFinite(ms) ? CLOCK.format(ms) : NONE);

/** "12 s", "3 min", "5 h", "2 d" */
export function span(ms) {
  const s = Math.max(0, Math.round(ms / 1000));
  if (s < 100) return `${s} s`;
  if (s < 6000) return `${Math.round(s / 60)} min`;
  return s < 172_800 ? `${Math.round(s / 3600)} h` : `${Math.round(s / 86_400)} d`;
}
export const ago = (ms, now) => (Number.isFinite(ms) ? `${span(now - ms)} ago` : NONE);
