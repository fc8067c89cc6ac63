// The Backups page: what is looked at stands in the address, so that it can be kept and sent.
import { fill, h, id, whenChanged } from "./dom.js";
import { bytes, clock, count, duration, millis, moment } from "./format.js";
import { domainView } from "./domain.js";
import { domainList } from "./domains.js";
import { feed, now } from "./feed.js";
import * as fleet from "./fleet.js";
import { plot } from "./plot.js";
import { tasks } from "./running.js";
import { timeline } from "./timeline.js";

const SPANS = { "24h": "24 hours", "7d": "7 days", "30d": "30 days" };
const STATE = { domain: "", q: "", only: "", sort: "attention", down: "", page: "0", span: "7d", hosts: "", hours: "0" };
let view = null;
let failed = null;
let working = null;
let seen = "";
let last = {};

const read = () => ({ ...STATE, ...Object.fromEntries(new URLSearchParams(location.hash.slice(1))) });
let state = read();

function change(what) {
  const next = new URLSearchParams(Object.entries({ ...state, ...what }).map(([name, value]) => [name, String(value)]).filter(([name, value]) => value !== STATE[name]));
  // Typing is not a step that the Back button should take back letter by letter.
  const step = "q" in what ? "replaceState" : "pushState";
  history[step](null, "", `#${next}`);
  moved();
}
const open = (uuid) => uuid && change({ domain: uuid });
const search = (q) => {
  change({ q, page: 0, only: "" });
  id("domains-title").scrollIntoView({ block: "start" });
};

// -- what is drawn ---------------------------------------------------------------------------------
const showRunning = tasks(id("running"), "No task is at work.");
const showDomains = domainList(id("domains"), { change });
const drawn = {
  hero: whenChanged((data, failures, only) => fleet.hero(id("fleet"), data, failures, { only, choose: (name) => change({ only: name, page: 0 }) })),
  cells: (data) => fleet.cells(id("cells"), data, { open, search }),
  hosts: whenChanged((data) => fleet.hosts(id("hosts"), data, { all: () => change({ hosts: "all" }), search })),
  alerts: whenChanged((data) => fleet.alerts(id("alerts"), data)),
  timeline: (data) => timeline(id("timeline"), data, { open, page: (page) => change({ hours: page }) }),
};
const hero = () => {
  if (!last.status) return;
  const { totals, shown, filters, beat, policy_version } = last.status;
  drawn.hero({ totals: { ...totals, running: working ?? totals.running }, shown, filters, beat, policy_version }, failed, state.only);
};
const rows = whenChanged((data, at) => showDomains(data, at));

function showStatus(data, body) {
  if (!data) {
    if (body.trouble && !last.status) fill(id("fleet"), h("h1", {}, "The fleet's state is not known"), h("p", { class: "dim" }, "It appears here as soon as somebody can tell it."));
    return;
  }
  last.status = data;
  if (data.cells) {
    seen = data.seen;
    drawn.cells(data.cells);
  }
  hero();
  // Ages go on by themselves: a minute that has passed is a reason to draw them anew.
  const minute = Math.floor(now() / 6e4);
  rows({ ...data.domains, rows: data.domains.rows.map((one) => ({ ...one, age: minute })) }, state);
  drawn.hosts({ hosts: data.hosts.map((host) => (host.alive ? { ...host, seen: "" } : host)), hosts_total: data.hosts_total });
}

function showTimeline(data) {
  if (!data) return;
  last.timeline = data;
  failed = `${count(data.totals.failed)}${millis(data.since) > millis(data.from) ? "+" : ""}`;
  drawn.timeline(data);
  hero();
}

const bucketTip = (bucket, width) => () => [
  ["", `${moment(bucket.at)} – ${clock(millis(bucket.at) + width)}`],
  ["backups", `${count(bucket.complete)} complete${bucket.failed ? `, ${count(bucket.failed)} failed` : ""}`],
  ["stored", bytes(bucket.stored)], ["copied", bytes(bucket.transferred)],
  ["median", bucket.median === null ? "" : duration(bucket.median)],
  ["longest", bucket.longest === null ? "" : duration(bucket.longest)],
];

function showTrends(data) {
  if (!data) return;
  last.trends = data;
  const [from, to, since, width] = [millis(data.from), millis(data.to), millis(data.since), data.width * 1000];
  const item = (bucket, what) => ({ from: millis(bucket.at), to: millis(bucket.at) + width, tip: bucketTip(bucket, width), ...what });
  const spans = h("div", { class: "spans", role: "group", "aria-label": "Span of time" }, Object.entries(SPANS).map(([span, text]) =>
    h("button", { type: "button", class: "chip", key: `span ${span}`, "aria-pressed": String(state.span === span), on: { click: () => change({ span }) } }, text)));
  const [sizes, times, ends] = [h("div"), h("div"), h("div")];
  fill(id("trends"), spans, h("div", { class: "three" }, sizes, times, ends));
  plot(sizes, { title: "Stored by backups", note: `in each ${duration(data.width)}`, unit: "bytes", from, to, since, key: "plot stored", items: data.buckets.map((bucket) => item(bucket, { bars: [["stored", bucket.stored]] })) });
  plot(times, { title: "Duration of a backup", note: "median, and the longest", unit: "seconds", line: true, from, to, since, key: "plot seconds", items: data.buckets.map((bucket) => item(bucket, { dots: [["median", bucket.median], ["longest", bucket.longest]] })) });
  plot(ends, { title: "Backups that ended", note: "failed ones in red", unit: "count", from, to, since, key: "plot ends", items: data.buckets.map((bucket) => item(bucket, { bars: [["all", bucket.complete + bucket.failed], ["failed", bucket.failed]] })) });
}

const trendsChanged = whenChanged(showTrends);
const trends = (data) => trendsChanged(data);

// -- what is asked ---------------------------------------------------------------------------------
const overview = (address) => () => (state.domain ? null : address());
const ask = {
  status: feed("status", overview(() => {
    const { q, only, sort, down, page, hosts } = state;
    const size = innerWidth < 640 ? 10 : 25;
    return `backups/data/status?${new URLSearchParams({ q, only, sort, down, page, size, hosts, seen })}`;
  }), 5, showStatus, true),
  alerts: feed("alerts", overview(() => "backups/data/alerts"), 5, (data) => data && drawn.alerts(data)),
  timeline: feed("timeline", overview(() => `backups/data/timeline?page=${encodeURIComponent(state.hours)}`), 15, showTimeline),
  trends: feed("trends", overview(() => `backups/data/trends?span=${encodeURIComponent(state.span)}`), 60, trends),
  running: feed("running", () => "backups/data/running", 2, (data) => {
    if (!data) return;
    showRunning(data);
    working = data.running.length + data.more;
    hero();
    view?.running(data);
  }),
};

// -- where we are ----------------------------------------------------------------------------------
function moved(first) {
  const before = state;
  state = read();
  const place = id("domain");
  id("overview").hidden = Boolean(state.domain);
  place.hidden = !state.domain;
  if (first === true || state.domain !== before.domain) {
    id("tip").hidden = true;
    view?.stop();
    if (state.domain) {
      view = domainView(place, state.domain);
      scrollTo(0, 0);
    } else {
      view = null;
      fill(place);
      document.title = "Backups · virtvault";
      if (first !== true) for (const again of Object.values(ask)) again();
    }
  } else if (!state.domain) {
    for (const [name, parts] of Object.entries({ status: ["q", "only", "sort", "down", "page", "hosts"], timeline: ["hours"], trends: ["span"] })) {
      if (parts.some((part) => state[part] !== before[part])) ask[name]();
    }
  }
}
addEventListener("popstate", moved);
moved(true);

// Links to a domain, and back, keep what the list was narrowed to.
addEventListener("click", (event) => {
  const link = event.target.closest?.("a");
  const plain = !event.button && !event.ctrlKey && !event.metaKey && !event.shiftKey;
  const to = link?.getAttribute("href") ?? "";
  if (!plain || !to.startsWith("#")) return;
  event.preventDefault();
  if (to === "#main") id("main").focus();
  else change({ domain: new URLSearchParams(to.slice(1)).get("domain") ?? "" });
});

let resizing = 0;
addEventListener("resize", () => {
  clearTimeout(resizing);
  resizing = setTimeout(() => {
    if (view) view.resize();
    else if (last.timeline) drawn.timeline(last.timeline);
    if (!view && last.trends) showTrends(last.trends);
  }, 150);
});

// -- theme: the same choice, kept at the same place, as on Flower's pages ----------------------------
const THEMES = ["system", "light", "dark"];
const SIGNS = { system: "◐", light: "☀", dark: "☾" };
function themed() {
  const theme = document.documentElement.dataset.theme ?? "system";
  id("theme").textContent = SIGNS[theme];
  id("theme").setAttribute("aria-label", `Theme: ${theme}. Change it`);
}
id("theme").addEventListener("click", () => {
  const theme = THEMES[(THEMES.indexOf(document.documentElement.dataset.theme ?? "system") + 1) % 3];
  try {
    if (theme === "system") localStorage.removeItem("flower-theme");
    else localStorage.setItem("flower-theme", theme);
  } catch {
    // Storage is off: it holds until the page is left.
  }
  if (theme === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  themed();
});
themed();
