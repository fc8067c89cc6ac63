// One domain: how it is, what runs on it, its points and chains, and how they grew.
import { fill, h, id, whenChanged } from "./dom.js";
import { bytes, count, duration, exact, millis, moment } from "./format.js";
import { chain } from "./chain.js";
import { age } from "./domains.js";
import { HEALTH, pill } from "./fleet.js";
import { feed, now, words } from "./feed.js";
import { plot } from "./plot.js";
import { tasks } from "./running.js";

const DAY = 86.4e6;
const AWAY = new Set(["unreachable", "absent"]);

export function domainView(place, uuid) {
  const part = (name, title) => h("section", { class: "card", "aria-label": title }, h("h2", {}, title), h("div", { id: name }));
  const head = h("section", { class: "card", "aria-label": "State" }, h("h1", {}, "…"));
  const live = h("section", { class: "card", hidden: true, "aria-label": "At work now" }, h("h2", {}, "At work now"), h("div", {}));
  fill(place, h("p", {}, h("a", { href: "#", key: "back" }, "← All domains")), head, live,
    h("div", { class: "pair" },
      h("section", { class: "card", "aria-label": "Size of its points" }, h("div", { id: "sizes" })),
      h("section", { class: "card", "aria-label": "Duration of its backups" }, h("div", { id: "durations" }))),
    part("chain", "Points"), part("domain-runs", "Runs"));
  const open = new Set();
  const draw = {
    head: whenChanged((status) => heading(head, status)),
    chain: whenChanged((data) => {
      const again = () => chain(id("chain"), data, open, again);
      again();
    }),
    plots: whenChanged((points, runs) => plots(points, runs)),
    runs: whenChanged((runs, slots) => runTable(id("domain-runs"), runs, slots)),
  };
  const showLive = tasks(live.lastChild, "");
  let last = null;
  let stopped = false;
  const take = (data, body) => {
    if (!data) {
      if (body.trouble && !last) fill(head, h("h1", {}, "This domain is not known now"), h("p", {}, body.trouble.message, " ", words(body.trouble.mend)));
      return;
    }
    last = data;
    document.title = `${data.status?.domain ?? uuid} · Backups · virtvault`;
    // The age is counted on here: it alone is no reason to draw anew, but a minute is.
    draw.head({ ...data.status, age: Math.floor(now() / 6e4) });
    draw.chain({ points: data.points, total: data.total });
    draw.plots(data.points, data.runs);
    draw.runs(data.runs, data.slots);
  };
  const again = feed("domain", () => (stopped ? null : `backups/data/domain/${encodeURIComponent(uuid)}`), 5, take, true);
  return {
    stop: () => {
      stopped = true;
      again();
    },
    running: (data) => { live.hidden = !showLive(data, uuid); },
    resize: () => last && plots(last.points, last.runs),
  };
}

function heading(place, one) {
  const fact = (value, label) => h("div", { class: "tile" }, h("b", {}, value), h("span", {}, label));
  const shown = AWAY.has(one.state) && !["late", "never"].includes(one.health) ? one.state : one.health;
  fill(place,
    h("div", { class: "domain-head" },
      h("h1", {}, one.domain), pill(shown),
      h("span", { class: "dim" }, `${HEALTH[shown]?.[1] ?? ""} · ${one.state} on ${one.host || "no hypervisor"}`)),
    h("p", { class: "dim mono" }, one.uuid),
    Object.keys(one.labels).length ? h("p", { class: "labels" }, Object.entries(one.labels).map(([name, value]) => h("span", { class: "label" }, `${name}=${value}`))) : null,
    h("div", { class: "tiles wide" },
      fact(age({ ...one, shown }), "newest good point"),
      fact(one.chain ? count(one.chain) : "–", "points in its chain"),
      fact(count(one.points), "points"), fact(bytes(one.stored), "stored"),
      fact(one.policies.join(", ") || "none", one.policies.length > 1 ? "policies" : "policy")),
    one.error ? h("div", { class: "trouble" }, h("strong", {}, one.error), " ", words(one.mend), h("span", { class: "dim" }, one.error_at ? ` ${moment(one.error_at)}` : "")) : null);
}

function plots(points, runs) {
  const known = points.filter((point) => point.instant).reverse();
  const done = runs.filter((run) => run.kind === "backup" && run.finished).reverse();
  const begin = Math.min(now() - DAY, ...known.map((point) => millis(point.instant)), ...done.map((run) => millis(run.finished)));
  const [from, to] = [begin - (now() - begin) * 0.02, now()];
  const slot = (to - from) / 90;
  plot(id("sizes"), {
    title: "Stored by each point", note: "logarithmic", unit: "bytes", log: true, from, to, key: "plot sizes",
    items: known.map((point) => ({
      from: millis(point.instant) - slot / 2, to: millis(point.instant) + slot / 2,
      bars: [[point.sync, point.stored]],
      tip: () => [[point.sync, `${moment(point.instant)} · ${point.sync}`], ["stored", bytes(point.stored)], ["copied", bytes(point.transferred)], ["of", bytes(point.size)]],
    })),
  });
  plot(id("durations"), {
    title: "Duration of each backup", note: "", unit: "seconds", line: true, from, to, key: "plot durations",
    items: done.map((run) => ({
      from: millis(run.finished) - slot / 2, to: millis(run.finished) + slot / 2,
      dots: [[run.state, run.seconds]],
      tip: () => [[run.state, `${moment(run.finished)} · ${run.state}`], ["took", duration(run.seconds)], ["sync", run.sync], ["copied", run.transferred ? bytes(run.transferred) : ""], ["why", run.error]],
    })),
  });
}

function runTable(place, runs, slots) {
  const all = [...runs.map((run) => ({ at: run.finished || run.started, run })), ...slots.map((slot) => ({ at: slot.at, slot }))]
    .sort((a, b) => millis(b.at) - millis(a.at)).slice(0, 25);
  if (!all.length) {
    fill(place, h("p", { class: "dim" }, "None is known."));
    return;
  }
  fill(place, h("ul", { class: "runs" }, all.map(({ run, slot }) => h("li", {},
    h("span", { class: `key ${(run ?? slot).state}` }, h("i", {}), (run ?? slot).state),
    h("span", {}, [(run ?? slot).kind, run?.sync].filter(Boolean).join(", ")),
    h("span", { class: "dim" }, run ? `${moment(run.started)}${run.finished ? `, ${duration(run.seconds)}` : `, since ${exact(run.started)}`}` : moment(slot.slot)),
    h("span", { class: "dim" }, run ? (run.transferred ? `${bytes(run.transferred)} copied, ${bytes(run.stored)} stored` : "") : slot.reason),
    h("span", { class: "dim" }, (run ?? slot).policy ? `policy ${(run ?? slot).policy}` : "by hand"),
    run ? h("a", { href: `task/${encodeURIComponent(run.task_id)}`, class: "dim" }, "task") : null,
    run?.error ? h("p", { class: "error" }, run.error, " ", words(run.mend)) : null))));
}
