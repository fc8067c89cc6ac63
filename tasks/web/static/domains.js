// The list of domains: searched, narrowed, sorted and paged by the server.
import { fill, h } from "./dom.js";
import { bytes, count, duration, many, moment } from "./format.js";
import { HEALTH, kind, pill } from "./fleet.js";
import { pager } from "./timeline.js";
import { now } from "./feed.js";

const COLUMNS = [
  ["attention", "State"], ["domain", "Domain"], ["host", "Hypervisor"], ["age", "Newest point"],
  ["chain", "Chain"], ["points", "Points"], ["stored", "Stored"],
];

// States that say more than whether the guest runs.
const AWAY = new Set(["unreachable", "unknown", "absent", "migrating"]);

// The search and the filter stand still while the list below them is drawn anew.
export function domainList(place, { change }) {
  let waiting = 0;
  const search = h("input", {
    type: "search", id: "search", placeholder: "name, uuid, host, label=value, policy", autocomplete: "off", spellcheck: "false", maxlength: 200,
    "aria-label": "Search domains by name, uuid, host:NAME, label=value or policy",
    on: { input: () => {
      clearTimeout(waiting);
      const q = search.value;
      waiting = setTimeout(() => {
        waiting = 0;
        change({ q, page: 0 });
      }, 200);
    } },
  });
  const only = h("select", { "aria-label": "Health", on: { change: () => change({ only: only.value, page: 0 }) } },
    h("option", { value: "" }, "all domains"),
    [...Object.keys(HEALTH), "running"].map((name) => h("option", { value: name }, HEALTH[name]?.[0] ?? name)));
  const sort = h("select", { class: "narrow", "aria-label": "Sort", on: { change: () => change({ sort: sort.value, down: "", page: 0 }) } },
    COLUMNS.map(([name, title]) => h("option", { value: name }, `by ${title.toLowerCase()}`)));
  const matching = h("span", { class: "dim", role: "status" });
  const table = h("div");
  fill(place, h("div", { class: "tools", role: "search" }, search, only, sort, matching), table);
  return (data, state) => {
    // What is being typed is not taken back.
    if (document.activeElement !== search && !waiting) search.value = state.q;
    only.value = state.only;
    sort.value = state.sort;
    matching.textContent = many(data.matching, "domain");
    draw(table, data, state, change);
  };
}

function draw(place, data, state, change) {
  if (!data.rows.length) {
    fill(place, h("p", { class: "dim" }, state.q || state.only ? "No domain matches." : "No domain is known."));
    return;
  }
  const head = COLUMNS.map(([name, title]) => {
    const sorted = state.sort === name;
    return h("th", { "aria-sort": sorted ? (state.down ? "descending" : "ascending") : null, scope: "col" },
      h("button", { type: "button", key: `sort ${name}`, on: { click: () => change({ sort: name, down: sorted && !state.down ? "1" : "", page: 0 }) } },
        title, sorted ? (state.down ? " ↓" : " ↑") : ""));
  });
  fill(place,
    h("table", { class: "domains" }, h("thead", {}, h("tr", {}, head)), h("tbody", {}, data.rows.map(domainRow))),
    pager(data, (page) => change({ page }), "domains"));
}

const domainRow = (one) =>
  h("tr", {},
    h("td", {}, pill(one.shown), one.running ? h("span", { class: "pill is-running" }, "running") : null),
    h("td", { class: "name" },
      h("a", { href: `#domain=${encodeURIComponent(one.uuid)}`, key: `row ${one.uuid}` }, one.domain),
      h("span", { class: "labels" }, Object.entries(one.labels).slice(0, 4).map(([name, value]) => h("span", { class: "label" }, `${name}=${value}`)))),
    h("td", { "data-title": "on" }, one.host, AWAY.has(one.state) ? h("span", { class: "dim" }, ` ${one.state}`) : null),
    h("td", { "data-title": "newest point" }, age(one)),
    h("td", { class: "number", "data-title": "chain" }, one.chain ? count(one.chain) : "–"),
    h("td", { class: "number", "data-title": "points" }, count(one.points)),
    h("td", { class: "number", "data-title": "stored" }, bytes(one.stored)),
    one.error ? h("td", { class: "error" }, one.error) : null);

// The age counted on from the point's instant, and how much of the RPO that is.
export function age(one) {
  if (!one.instant) return h("span", { class: "dim" }, one.health === "unprotected" ? "none" : "none yet");
  const seconds = Math.max(0, (now() - Date.parse(one.instant)) / 1000);
  const share = one.rpo ? seconds / one.rpo : 0;
  return h("span", { class: "age", title: moment(one.instant) },
    h("span", {}, duration(seconds)),
    one.rpo ? [h("span", { class: `gauge ${kind(one.shown)}` }, h("i", { css: { width: `${Math.min(100, share * 100)}%` } })),
      h("span", { class: "dim" }, `of ${duration(one.rpo)}`)] : null);
}
