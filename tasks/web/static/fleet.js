// The fleet at a glance: how fresh it is, what is wrong, one cell for each domain, hypervisors.
import { fill, h, roving } from "./dom.js";
import { ago, bytes, count, duration, many, moment } from "./format.js";
import { now, words } from "./feed.js";
import { explain } from "./tip.js";

// Health as it is shown: word, class, what it means. The worst first.
export const HEALTH = {
  late: ["late", "the newest good point is older than its RPO"],
  never: ["never", "protected, and no good point yet"],
  unreachable: ["unreachable", "its hypervisor is gone"],
  failing: ["failing", "fresh, but its last backup failed"],
  unprotected: ["unprotected", "no policy means it"],
  "no rpo": ["no RPO", "protected, without an allowed age"],
  absent: ["absent", "no hypervisor has it any more; its points are kept"],
  fresh: ["fresh", "a good point within its RPO"],
};
const GLYPH = { late: "!", never: "–", unreachable: "?", failing: "×", unprotected: "○" };
export const kind = (shown) => `is-${shown.replaceAll(" ", "-")}`;

export const pill = (shown) =>
  h("span", { class: `pill ${kind(shown)}`, title: HEALTH[shown]?.[1] }, HEALTH[shown]?.[0] ?? shown);

const tile = (value, label, tone = "") =>
  h("div", { class: `tile ${tone}` }, h("b", {}, value), h("span", {}, label));

export function hero(place, data, failed, { only, choose }) {
  const { totals, shown, filters } = data;
  if (!totals.domains) {
    fill(place,
      h("h1", {}, "No domain is known yet"),
      h("p", {}, totals.hosts
        ? `${many(totals.hosts, "hypervisor")} reported, and none has a domain.`
        : "No hypervisor has reported to this Redis."),
      h("p", { class: "dim" }, words("Start `virtvault worker` on a hypervisor, with this Redis as its broker_url; its domains appear here by themselves, within seconds.")));
    return;
  }
  const trouble = shown.late + shown.never + shown.unreachable + shown.failing;
  const protected_ = totals.domains - totals.unprotected;
  const headline = !data.policy_version && protected_ <= 0
    ? [many(totals.domains, "domain"), " and no policy to protect ", totals.domains === 1 ? "it" : "them"]
    : trouble
    ? [h("span", { class: "bad" }, count(trouble)), ` of ${many(totals.domains, "domain")} ${trouble === 1 ? "needs" : "need"} attention`]
    : totals.fresh === totals.domains
      ? [`All ${many(totals.domains, "domain")} are fresh`]
      : [h("span", { class: "good" }, count(totals.fresh)), ` of ${many(totals.domains, "domain")} fresh`];
  const names = Object.keys(HEALTH);
  const there = names.filter((name) => shown[name] && name !== "absent");
  fill(place,
    h("div", { class: "hero-text" },
      h("h1", {}, headline),
      h("div", { class: "share", role: "img", "aria-label": there.map((name) => `${HEALTH[name][0]} ${shown[name]}`).join(", ") },
        there.map((name) =>
          h("span", { class: kind(name), css: { "flex-grow": String(shown[name]) } }))),
      h("div", { class: "chips", role: "group", "aria-label": "Show only domains that are" },
        [...names, "running"].filter((name) => filters[name] || only === name).map((name) =>
          h("button", {
            type: "button", class: `chip ${kind(name)}`, key: `only ${name}`, title: HEALTH[name]?.[1],
            "aria-pressed": String(only === name), on: { click: () => choose(only === name ? "" : name) },
          }, h("i", {}), HEALTH[name]?.[0] ?? name, " ", h("b", {}, count(filters[name]))))),
      data.policy_version ? null : h("p", { class: "notice" }, words("No policy is in force, so nothing is backed up by itself. `virtvault policy apply -f FILE` changes that; `virtvault policy preview -f FILE` shows first what it would do.")),
      h("p", { class: "dim beat" },
        data.beat ? `Beat: ${data.beat.replace(/\d{4}-\S+Z/, (at) => moment(at))}` : "No beat leads: nothing is started by schedule.",
        data.policy_version ? ` · policies version ${data.policy_version}` : "")),
    h("div", { class: "tiles" },
      tile(count(totals.running), "at work now"),
      tile(failed ?? "–", "failed in 24 h", failed && failed !== "0" ? "bad" : ""),
      tile(count(totals.points), "points"),
      tile(bytes(totals.stored), "stored")));
}

export function alerts(place, found) {
  const title = { failed: "backup failed", rpo: "too old", host: "hypervisor gone", beat: "no schedule", notice: "not told" };
  if (!found.length) {
    fill(place, h("p", { class: "fine" }, "Nothing is wrong that was noticed."));
    return;
  }
  const few = found.slice(0, 30);
  fill(place, h("ul", { class: "alerts" }, few.map((one) =>
    h("li", { class: `alert about-${one.kind}` },
      h("div", {},
        h("span", { class: "pill is-late" }, title[one.kind] ?? one.kind), " ",
        one.uuid ? h("a", { href: `#domain=${encodeURIComponent(one.uuid)}`, key: `alert ${one.subject} ${one.kind}` }, one.domain || one.subject) : h("strong", {}, one.subject),
        h("span", { class: "dim" }, ` ${one.host && one.host !== one.subject ? `on ${one.host}, ` : ""}for ${duration(Math.max(0, (now() - Date.parse(one.opened)) / 1000))}`)),
      h("p", {}, one.detail),
      one.mend ? h("p", { class: "mend" }, words(one.mend)) : null))),
  found.length > few.length ? h("p", { class: "dim" }, words(`and ${many(found.length - few.length, "alert")} more: \`virtvault alerts\``)) : null);
}

export function cells(place, { of, cells: found }, { open, search }) {
  if (found.length < 2) {
    fill(place);
    return;
  }
  const marks = found.map(of === "domains" ? domainCell : hostCell);
  const act = (mark) => (of === "domains" ? open(mark.dataset.at) : search(`host:${mark.dataset.at}`));
  const group = h("div", {
    class: `cells of-${of} ${found.length > 300 ? "many" : ""}`, tabindex: 0, role: "group", key: "cells",
    "aria-label": of === "domains" ? "One cell for each domain, the worst first; arrow keys go through them, Enter opens" : "One cell for each hypervisor, the worst first; arrow keys go through them, Enter lists its domains",
    on: { click: (event) => event.target.closest("[data-mark]") && act(event.target.closest("[data-mark]")) },
  }, marks);
  roving(group, marks, act);
  fill(place, h("p", { class: "dim caption" }, of === "domains" ? "One cell for each domain, the worst first." : "One cell for each hypervisor, the worst first."), group);
}

const domainCell = ([domain, uuid, shown, tone, host]) =>
  explain(
    h("span", { class: `cell ${kind(shown)} tone-${tone}`, "data-mark": true, "data-at": uuid }, GLYPH[shown] ?? ""),
    () => [[kind(shown), domain], ["is", `${HEALTH[shown][0]}: ${HEALTH[shown][1]}`], ["on", host]],
  );

const hostCell = ([host, counts]) =>
  explain(
    h("span", { class: "cell", "data-mark": true, "data-at": host },
      Object.keys(HEALTH).filter((name) => counts[name]).map((name) =>
        h("i", { class: kind(name), css: { "flex-grow": String(counts[name]) } }))),
    () => [["", host || "on no hypervisor"], ...Object.entries(counts).map(([name, n]) => [HEALTH[name][0], n ? count(n) : ""])],
  );

export function hosts(place, { hosts: found, hosts_total: total }, { all, search }) {
  if (!total) {
    fill(place, h("p", { class: "dim" }, "None has reported."));
    return;
  }
  fill(place,
    h("ul", { class: "hosts" }, found.map((host) => hostCard(host, search))),
    total > found.length
      ? h("p", {}, h("button", { class: "quiet", type: "button", key: "all hosts", on: { click: all } }, `Show all ${count(total)}`), h("span", { class: "dim" }, " These are those that are gone, and those with the least room."))
      : null);
}

const hostCard = (host, search) =>
  h("li", { class: host.alive ? "host" : "host gone" },
    h("div", { class: "host-name" },
      h("button", { class: "link", type: "button", key: `host ${host.host}`, title: "List its domains", on: { click: () => search(`host:${host.host}`) } }, host.host),
      host.alive ? h("span", { class: "dim" }, many(host.domains, "domain")) : h("span", { class: "pill is-unreachable" }, `gone, last seen ${ago(host.seen, now())}`)),
    host.libvirt || host.qemu ? h("div", { class: "dim" }, [host.libvirt && `libvirt ${host.libvirt}`, host.qemu && `QEMU ${host.qemu}`].filter(Boolean).join(" · ")) : null,
    host.trouble ? h("div", { class: "bad" }, host.trouble) : null,
    host.storage.length ? host.storage.map(room) : host.repositories.length ? h("div", { class: "dim" }, `repositories: ${host.repositories.join(", ")}`) : h("div", { class: "dim" }, "no repository"));

function room(one) {
  if (one.why) return h("div", { class: "room" }, h("span", {}, one.name), h("span", { class: "bad" }, one.why));
  const known = one.size > 0 && one.free >= 0;
  const used = known ? Math.min(1, Math.max(0, 1 - one.free / one.size)) : 0;
  const tone = used > 0.95 ? "bad" : used > 0.85 ? "warn" : "";
  return h("div", { class: "room" },
    h("span", {}, one.name),
    h("span", { class: tone || "dim" }, known ? `${bytes(one.free)} free of ${bytes(one.size)}` : "free room unknown"),
    known ? h("div", { class: `meter ${tone}`, role: "meter", "aria-label": `${one.name}: used`, "aria-valuenow": Math.round(used * 100), "aria-valuemin": 0, "aria-valuemax": 100 }, h("i", { css: { width: `${(used * 100).toFixed(1)}%` } })) : null);
}
