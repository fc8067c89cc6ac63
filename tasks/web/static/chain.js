// A domain's points, newest first, each joined by a line to the one it stands on.
import { fill, h, s } from "./dom.js";
import { ago, bytes, full, many, moment } from "./format.js";
import { now } from "./feed.js";

const WIDE = 14;
const HIGH = 46;
// Points listed until all are asked for.
const FIRST = 30;

// Which lanes pass above and below each point. A lane waits for the point it leads to.
function rails(points) {
  const there = new Set(points.map((point) => `${point.repository_id} ${point.id}`));
  let lanes = [];
  return points.map((point) => {
    const name = `${point.repository_id} ${point.id}`;
    const above = [...lanes];
    const led = lanes.flatMap((waits, lane) => (waits === name ? [lane] : []));
    let lane = led[0] ?? lanes.indexOf(null);
    if (lane < 0) lane = lanes.length;
    led.forEach((one) => { lanes[one] = null; });
    // A disk may stand on another point than the rest: the first way is drawn, the details name all.
    const parent = point.parents.map((one) => `${point.repository_id} ${one}`).find((one) => there.has(one));
    lanes[lane] = parent ?? null;
    lanes = lanes.slice(0, lanes.findLastIndex((waits) => waits !== null && waits !== undefined) + 1);
    return { point, lane, led, above, below: [...lanes], parent };
  });
}

const middle = (lane) => lane * WIDE + WIDE / 2 + 2;

function rail(row, width) {
  const svg = s("svg", { class: "rail", width, height: HIGH, viewBox: `0 0 ${width} ${HIGH}`, "aria-hidden": "true" });
  const way = (x1, y1, x2, y2) => svg.append(s("path", { class: "way", d: x1 === x2 ? `M${x1} ${y1}V${y2}` : `M${x1} ${y1}C${x1} ${(y1 + y2) / 2} ${x2} ${(y1 + y2) / 2} ${x2} ${y2}` }));
  const here = middle(row.lane);
  row.above.forEach((waits, lane) => {
    if (!waits) return;
    if (row.led.includes(lane)) way(middle(lane), 0, here, HIGH / 2);
    else way(middle(lane), 0, middle(lane), HIGH);
  });
  if (row.parent) way(here, HIGH / 2, here, HIGH);
  const shape = row.point.sync === "full"
    ? s("rect", { class: `node ${row.point.state}`, x: here - 6, y: HIGH / 2 - 6, width: 12, height: 12, rx: 3 })
    : s("circle", { class: `node ${row.point.state}`, cx: here, cy: HIGH / 2, r: 5 });
  svg.append(shape);
  return svg;
}

const badge = (text, tone, title) => h("span", { class: `badge ${tone}`, title }, text);

function badges(point) {
  const found = [];
  if (point.state === "bad" || point.state === "broken") found.push(badge(point.state, "bad", point.why));
  if (point.state === "pruning") found.push(badge("being pruned", "warn", point.why));
  if (point.state === "unknown") found.push(badge("state unknown", "", "the catalog was told nothing of it yet"));
  if (point.verdict === "good") found.push(badge("✓ verified", "good", `good on ${full(point.verified)}`));
  if (point.verdict === "unproven") found.push(badge("unproven", "warn", `verified on ${full(point.verified)}: nothing wrong found, not all proven`));
  if (point.protected) found.push(badge("protected", "kept", point.protected));
  return found;
}

const term = (name, text) => (text ? [h("dt", {}, name), h("dd", {}, text)] : null);

function details(point, children, go) {
  const link = (id) => h("button", { class: "link mono", type: "button", on: { click: () => go(id) } }, id);
  const join = (ids) => ids.flatMap((id, i) => [i ? ", " : "", link(id)]);
  return h("div", { class: "details" },
    h("dl", {},
      term("point", h("span", { class: "mono" }, point.id)),
      term("repository", `${point.repository} (${point.repository_id})`),
      term("state", point.why ? `${point.state}: ${point.why}` : point.state),
      term("verify", point.verdict ? `${point.verdict}, ${ago(point.verified, now())}` : "never verified"),
      term("protected", point.protected),
      term("stands on", point.parents.length ? join(point.parents) : point.disks.length ? "nothing: it is a full" : ""),
      term("under it", children.length ? join(children) : "nothing stands on it"),
      point.disks.length ? [
        term("a restore reads", many(point.needs, "point")),
        term("made on", `${point.host}, ${full(point.instant)}`),
        term("consistency", `${point.consistency}, domain ${point.domain_state}${point.paused_ms ? `, CPUs stood ${Math.round(point.paused_ms)} ms` : ""}${point.frozen_ms ? `, file systems frozen ${Math.round(point.frozen_ms)} ms` : ""}${point.isolated ? "" : ", not isolated"}`),
        term("merged into it", point.merged ? many(point.merged, "pruned point") : ""),
        term("left out", Object.entries(point.skipped).map(([target, why]) => `${target}: ${why}`).join("; ")),
        term("notes", point.notes.join("; ")),
      ] : null),
    point.disks.length ? h("div", { class: "scroll" }, h("table", { class: "disks-table" },
      h("thead", {}, h("tr", {}, ["Disk", "Sync", "Size", "Copied", "Stored", "Why"].map((name, place) => h("th", { scope: "col", class: place > 1 && place < 5 ? "number" : null }, name)))),
      h("tbody", {}, point.disks.map((disk) => h("tr", {},
        h("td", {}, disk.target), h("td", {}, disk.sync), h("td", { class: "number" }, bytes(disk.virtual_size)),
        h("td", { class: "number" }, bytes(disk.transferred)), h("td", { class: "number" }, bytes(disk.stored)), h("td", {}, disk.reason || "–")))))) : null);
}

// `open` has the ids whose details are seen, and "all"; it lives on between two drawings.
export function chain(place, { points: all, total }, open, again) {
  const points = open.has("all") ? all : all.slice(0, FIRST);
  if (!points.length) {
    fill(place, h("p", { class: "dim" }, "No point yet."));
    return;
  }
  const rows = rails(points);
  const width = Math.max(1, ...rows.map((row) => Math.max(row.lane, row.above.length - 1, row.below.length - 1) + 1)) * WIDE + 6;
  const largest = Math.max(1, ...points.map((point) => point.stored ?? 0));
  const repositories = new Set(points.map((point) => point.repository_id)).size;
  const children = new Map();
  for (const point of all) for (const id of point.parents) children.set(id, [...(children.get(id) ?? []), point.id]);
  const go = (id) => {
    open.add("all").add(id);
    again();
    const found = place.querySelector(`[data-key="point ${CSS.escape(id)}"]`);
    found?.scrollIntoView({ block: "center" });
    found?.focus();
  };
  fill(place,
    h("p", { class: "dim caption" }, "Newest first. A line leads down from each point to the one it stands on; a square is a full."),
    h("ol", { class: "points" }, rows.map((row) => {
      const { point } = row;
      const seen = open.has(point.id);
      const name = point.sync || "unreadable";
      return h("li", { class: seen ? "point seen" : "point" },
        h("div", { class: "through", css: { width: `${width}px` }, "aria-hidden": "true" },
          row.below.map((waits, lane) => (waits ? h("i", { css: { left: `${middle(lane) - 1}px` } }) : null))),
        rail(row, width),
        h("button", {
          type: "button", class: "point-head", key: `point ${point.id}`, "aria-expanded": String(seen),
          on: { click: () => {
            if (!open.delete(point.id)) open.add(point.id);
            again();
          } },
        },
        h("span", { class: "when" }, h("b", {}, point.instant ? moment(point.instant) : point.id), point.instant ? h("span", { class: "dim" }, ago(point.instant, now())) : null),
        h("span", { class: `sync ${name}` }, name),
        repositories > 1 ? h("span", { class: "dim repo" }, point.repository) : null,
        h("span", { class: "size" }, point.disks.length ? bytes(point.stored) : "", h("span", { class: "thin-bar" }, h("i", { css: { width: `${(100 * (point.stored ?? 0)) / largest}%` } }))),
        h("span", { class: "badges" }, badges(point))),
        seen ? details(point, children.get(point.id) ?? [], go) : null);
    })),
    all.length > points.length ? h("p", {}, h("button", { type: "button", class: "quiet", key: "all points", on: { click: () => { open.add("all"); again(); } } }, `Show all ${all.length}`)) : null,
    total > all.length ? h("p", { class: "dim" }, `and ${many(total - all.length, "older point")}: `, h("code", {}, "virtvault points DOMAIN")) : null);
}

