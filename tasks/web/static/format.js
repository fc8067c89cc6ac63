// Numbers and times as people read them. Times are of the viewer's own zone.
const UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];

export function bytes(n) {
  if (n === null || n === undefined || n < 0) return "unknown";
  let unit = 0;
  while (n >= 1024 && unit < UNITS.length - 1) {
    n /= 1024;
    unit += 1;
  }
  return `${n >= 100 || unit === 0 || Number.isInteger(n) ? Math.round(n) : n.toFixed(1)} ${UNITS[unit]}`;
}

export const count = (n) => Math.round(n).toLocaleString("en-US").replaceAll(",", " ");

export const many = (n, one, more = `${one}s`) => `${count(n)} ${n === 1 ? one : more}`;

export function duration(seconds) {
  if (seconds === null || seconds === undefined || seconds < 0) return "unknown";
  if (seconds < 10) return `${Number(seconds.toFixed(1))} s`;
  if (seconds < 100) return `${Math.round(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 60) return `${minutes} min`;
  if (minutes < 48 * 60) return minutes % 60 ? `${Math.floor(minutes / 60)} h ${minutes % 60} min` : `${minutes / 60} h`;
  const hours = Math.round(minutes / 60);
  return hours % 24 && hours < 240 ? `${Math.floor(hours / 24)} d ${hours % 24} h` : `${Math.round(hours / 24)} d`;
}

// What is left of a job: as a clock, so that it does not jump in width.
export function left(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  const two = (n) => String(n).padStart(2, "0");
  const hours = Math.floor(whole / 3600);
  const rest = `${two(Math.floor((whole % 3600) / 60))}:${two(whole % 60)}`;
  return hours ? `${hours}:${rest}` : rest;
}

export const millis = (text) => (text ? Date.parse(text) : NaN);

export const ago = (text, now) => {
  const seconds = (now - millis(text)) / 1000;
  if (Number.isNaN(seconds)) return "unknown";
  return seconds < 0 ? `in ${duration(-seconds)}` : `${duration(seconds)} ago`;
};

const with_ = (options) => {
  const format = new Intl.DateTimeFormat("en-GB", options);
  return (at) => {
    const when = typeof at === "number" ? at : millis(at);
    return Number.isNaN(when) ? "unknown" : format.format(when);
  };
};
export const clock = with_({ hour: "2-digit", minute: "2-digit" });
export const exact = with_({ hour: "2-digit", minute: "2-digit", second: "2-digit" });
export const day = with_({ day: "numeric", month: "short" });
export const moment = with_({ day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" });
export const full = with_({ dateStyle: "medium", timeStyle: "long" });
