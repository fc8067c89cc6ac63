// Details of a mark: under the pointer, at a tap, or as the arrow keys reach it.
import { fill, h, id } from "./dom.js";

const told = new WeakMap();

// `lines` gives [[term, text], …] when it is looked at; the first pair's text is the heading.
export function explain(mark, lines) {
  told.set(mark, lines);
  return mark;
}

function place(tip, x, y) {
  const box = tip.getBoundingClientRect();
  const left = Math.min(Math.max(8, x + 14), innerWidth - box.width - 8);
  const below = y + 18 + box.height < innerHeight;
  tip.style.left = `${Math.max(8, left)}px`;
  tip.style.top = `${Math.max(8, below ? y + 18 : y - box.height - 12)}px`;
}

function look(event) {
  const mark = event.target.closest?.("[data-mark]");
  const lines = mark && told.get(mark);
  const tip = id("tip");
  if (!lines) {
    if (event.type !== "look") tip.hidden = true;
    return;
  }
  const [[kind, heading], ...rest] = lines();
  fill(tip, h("strong", { class: kind }, heading),
    h("dl", {}, rest.filter(([, text]) => text).map(([term, text]) => [h("dt", {}, term), h("dd", {}, text)])));
  tip.hidden = false;
  const box = mark.getBoundingClientRect();
  const pointed = event.type === "pointermove" || event.type === "pointerdown";
  place(tip, pointed ? event.clientX : box.left, pointed ? event.clientY : box.bottom - 12);
}

for (const type of ["pointermove", "pointerdown", "look"]) addEventListener(type, look);
addEventListener("keydown", (event) => {
  if (event.key === "Escape") id("tip").hidden = true;
});
addEventListener("focusout", () => {
  id("tip").hidden = true;
});
addEventListener("scroll", () => {
  id("tip").hidden = true;
}, { passive: true });
