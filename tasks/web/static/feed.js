// Asks the page's data again and again, and tells what is wrong where it cannot be had.
import { fill, h, id } from "./dom.js";
import { exact } from "./format.js";

const troubles = new Map();
let heard = "";
let skew = 0;

// The server's time: a viewer's clock may be wrong.
export const now = () => Date.now() + skew;

// Text with `commands` in backquotes.
export const words = (text) =>
  String(text).split("`").map((part, i) => (i % 2 ? h("code", {}, part) : part));

function show() {
  // One cause is told once, however many questions it leaves unanswered.
  const told = new Map([...troubles.values()].map((one) => [one.message, one]));
  const place = id("trouble");
  const text = JSON.stringify([...told.values(), heard && told.size ? heard : ""]);
  document.documentElement.classList.toggle("stale", told.size > 0);
  id("heard").textContent = heard ? `as of ${exact(heard)}` : "";
  if (place.dataset.shown === text) return;
  place.dataset.shown = text;
  fill(
    place,
    [...told.values()].map((one) =>
      h("div", { class: "trouble" },
        h("strong", {}, one.message), " ", words(one.mend || ""),
        h("span", { class: "dim" },
          heard ? ` Shown is what was known at ${exact(heard)}; ` : " ",
          "this page tries again by itself."))),
  );
}

async function fetched(address, signal) {
  try {
    // Not relative to the page's address as it was typed: `fetch` refuses one with a password in it.
    const whole = new URL(address, location.origin + location.pathname);
    const response = await fetch(whole, { signal, headers: { Accept: "application/json" } });
    const type = response.headers.get("Content-Type") || "";
    if (type.startsWith("application/json")) return await response.json();
    return {
      data: null, at: "",
      trouble: { message: `Flower's web server answered ${response.status}.`, mend: "See its log." },
    };
  } catch (error) {
    if (error.name === "AbortError") return null;
    return {
      data: null, at: "",
      trouble: {
        message: "Flower's web server does not answer.",
        mend: "See whether `virtvault flower` runs there.",
      },
    };
  }
}

// Ask `address()` every `every` seconds while the page is seen; `take(data, body)` gets what comes.
// An address that is null is not asked. `main` feeds say how old the page is.
export function feed(name, address, every, take, main = false) {
  let timer = 0;
  let flight = null;
  async function ask() {
    clearTimeout(timer);
    flight?.abort();
    const at = address();
    if (at === null) {
      troubles.delete(name);
      return;
    }
    const mine = (flight = new AbortController());
    const body = await fetched(at, mine.signal);
    if (mine !== flight || body === null) return;
    if (body.now) skew = Date.parse(body.now) - Date.now();
    if (body.trouble) troubles.set(name, body.trouble);
    else troubles.delete(name);
    if (main && body.at) heard = body.at;
    take(body.data, body);
    show();
    // Nobody waits for the next trend to read that all is well again.
    const wait = body.trouble ? Math.min(every, 2) : every;
    if (!document.hidden) timer = setTimeout(ask, wait * 1000);
  }
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden) ask();
  });
  ask();
  return ask;
}
