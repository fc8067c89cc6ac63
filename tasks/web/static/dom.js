// Elements, made of text and never of markup: names and errors come from strangers.
const SVG = "http://www.w3.org/2000/svg";

function make(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "on") {
      for (const [event, act] of Object.entries(value)) element.addEventListener(event, act);
    } else if (name === "css") {
      for (const [property, is] of Object.entries(value)) element.style.setProperty(property, is);
    } else if (name === "key") {
      element.dataset.key = value;
    } else {
      element.setAttribute(name, value === true ? "" : value);
    }
  }
  element.append(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

// h("a", {class: "x", href: "…", on: {click}}, "text", child, [more])
export const h = (name, attributes = {}, ...children) =>
  make(document.createElement(name), attributes, children);

export const s = (name, attributes = {}, ...children) =>
  make(document.createElementNS(SVG, name), attributes, children);

export const id = (name) => document.getElementById(name);

// Put new children into a place; what had the focus there has it again, known by its key.
export function fill(place, ...children) {
  const active = document.activeElement;
  const key = active && place.contains(active) ? active.dataset.key : undefined;
  place.replaceChildren(...children.flat(3).filter(Boolean));
  if (key) place.querySelector(`[data-key="${CSS.escape(key)}"]`)?.focus({ preventScroll: true });
}

// Draw again only where what is drawn has changed: focus, hover and selection stay.
export function whenChanged(draw) {
  let last;
  return (value, ...more) => {
    const text = JSON.stringify([value, ...more]);
    if (text === last) return;
    last = text;
    draw(value, ...more);
  };
}

// One stop of the Tab key for many marks: arrows go from one to the next.
export function roving(group, marks, enter) {
  let current = -1;
  const go = (to) => {
    marks[current]?.classList.remove("current");
    current = Math.max(0, Math.min(marks.length - 1, to));
    marks[current]?.classList.add("current");
    marks[current]?.dispatchEvent(new CustomEvent("look", { bubbles: true }));
  };
  group.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (step) go(current + step);
    else if (event.key === "Home") go(0);
    else if (event.key === "End") go(marks.length - 1);
    else if (event.key === "Enter" && marks[current] && enter) enter(marks[current]);
    else return;
    event.preventDefault();
  });
  group.addEventListener("blur", () => {
    marks[current]?.classList.remove("current");
    current = -1;
  });
}
