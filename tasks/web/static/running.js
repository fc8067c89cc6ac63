// Tasks at work, each with its live bar and one for each disk; kept in place from look to look.
import { fill, h } from "./dom.js";
import { bytes, left, many } from "./format.js";
import { now } from "./feed.js";

const UNUSUAL = new Set(["paused", "standby", "aborting"]);

function card() {
  const parts = {
    title: h("span", { class: "task-title" }),
    link: h("a", { class: "dim", title: "This task in Flower, where it can be revoked" }, "task"),
    bar: h("i"),
    numbers: h("p", { class: "numbers" }),
    disks: h("div", { class: "disks" }),
  };
  parts.meter = h("div", { class: "bar", role: "progressbar", "aria-valuemin": 0, "aria-valuemax": 100 }, parts.bar);
  parts.element = h("li", { class: "task" }, h("div", { class: "task-head" }, parts.title, parts.link), parts.meter, parts.numbers, parts.disks);
  return parts;
}

function numbers(task, progress) {
  if (!task.held) return "No living worker has it just now: it is taken up again by itself.";
  if (!progress) return "begins";
  const said = [progress.phase];
  if (progress.exports.length) return "serves its disks until it is cancelled";
  if (progress.total) {
    said.push(`${progress.percent.toFixed(progress.percent < 99.95 ? 1 : 0)} %`, `${bytes(progress.done)} of ${bytes(progress.total)}`);
    if (progress.rate > 0 && progress.done < progress.total) said.push(`${bytes(progress.rate)}/s`);
    if (progress.eta >= 0 && progress.done < progress.total) said.push(`${left(progress.eta)} left`);
  }
  said.push(...new Set(progress.disks.map((disk) => disk.status).filter((status) => UNUSUAL.has(status))));
  const silent = (now() - Date.parse(progress.updated)) / 1000;
  if (silent > 30) said.push(`no news for ${left(silent)}`);
  return said.join(" · ");
}

function update(parts, task) {
  const progress = task.progress;
  const name = task.domain || task.point || task.uuid || "all domains";
  fill(parts.title,
    h("strong", {}, task.kind), " ",
    task.uuid ? h("a", { href: `#domain=${encodeURIComponent(task.uuid)}`, key: `task ${task.task_id}` }, name) : name,
    h("span", { class: "dim" }, ` on ${task.host}`));
  parts.link.href = `task/${encodeURIComponent(task.task_id)}`;
  const percent = progress?.total ? progress.percent : 0;
  const vague = !progress?.total;
  parts.meter.classList.toggle("vague", vague && task.held);
  parts.meter.setAttribute("aria-label", `${task.kind} of ${name}`);
  if (vague) parts.meter.removeAttribute("aria-valuenow");
  else parts.meter.setAttribute("aria-valuenow", percent);
  parts.bar.style.width = vague ? "100%" : `${percent}%`;
  parts.numbers.textContent = numbers(task, progress);
  const disks = progress && progress.disks.length > 1 ? progress.disks : [];
  fill(parts.disks, disks.map((disk) => {
    const share = disk.total ? Math.min(100, (100 * disk.done) / disk.total) : 100;
    return h("div", { class: "disk" }, h("span", {}, disk.target),
      h("div", { class: "bar thin" }, h("i", { css: { width: `${share}%` } })),
      h("span", { class: "dim" }, disk.total ? `${share.toFixed(0)} % of ${bytes(disk.total)}` : "nothing to copy"));
  }));
}

// Gives what draws into `place`; `only` narrows it to one domain.
export function tasks(place, empty) {
  const cards = new Map();
  const list = h("ul", { class: "tasks" });
  const rest = h("p", { class: "dim" });
  return (data, only = "") => {
    const shown = data.running.filter((task) => !only || task.uuid === only);
    const ids = new Set(shown.map((task) => task.task_id));
    for (const [id, parts] of cards) {
      if (!ids.has(id)) {
        parts.element.remove();
        cards.delete(id);
      }
    }
    for (const task of shown) {
      let parts = cards.get(task.task_id);
      if (!parts) {
        parts = card();
        cards.set(task.task_id, parts);
        list.append(parts.element);
      }
      update(parts, task);
    }
    const waiting = only ? data.queued.filter((task) => task.uuid === only).length : data.queued_total;
    const said = [data.more && !only ? `${many(data.more, "task")} more at work` : "", waiting ? `${many(waiting, "task")} ${waiting === 1 ? "waits" : "wait"} in a queue` : ""].filter(Boolean);
    rest.textContent = said.join(" · ") || (shown.length ? "" : empty);
    if (!list.isConnected) fill(place, list, rest);
    list.hidden = !shown.length;
    rest.hidden = !rest.textContent;
    return shown.length;
  };
}
