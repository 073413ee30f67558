// The page: whom to look at, the sliders, one or two artifacts, the key, the theme.

import { ask, debounced, el, Fault, onKeyWanted, plural, showFault } from "./kit.js";
import { Dictionary } from "./dictionary.js";
import { Panel } from "./panel.js";

const $ = (id) => document.getElementById(id);
const MATCHES = 8;
let panels = [];
let dictionary = null;
let turn = 0;
let about = ""; // whom, in words

// --- theme: the system's until the button is pressed ----------------------------------------------------------------
const dark = matchMedia("(prefers-color-scheme: dark)");
let chosen = null;

function paintTheme() {
  const theme = chosen ?? (dark.matches ? "dark" : "light");
  document.documentElement.dataset.theme = theme;
  $("theme").textContent = theme === "dark" ? "Light" : "Dark";
  $("theme").setAttribute("aria-label", `Change to ${theme === "dark" ? "light" : "dark"} colours`);
  for (const panel of panels) panel.map.draw();
}
dark.addEventListener("change", paintTheme);
$("theme").addEventListener("click", () => {
  chosen = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
  paintTheme();
});
paintTheme();

// --- the key --------------------------------------------------------------------------------------------------------
onKeyWanted((fault) => new Promise((take, refuse) => {
  $("key-why").textContent = fault ? `${fault.message}. ${fault.fix}.` : "";
  $("key").value = "";
  $("ask-key").showModal();
  $("key-form").onsubmit = (event) => {
    event.preventDefault();
    $("ask-key").close();
    take($("key").value.trim());
    $("key").value = "";
  };
  $("ask-key").oncancel = () => refuse(new Fault(401, {
    error: "this server answers with an API key only", got: "no key", fix: "load the page again and give one",
  }));
}));

// --- whom -----------------------------------------------------------------------------------------------------------
const first = () => panels[0].facts.variant;

async function findUsers(query, count = MATCHES) {
  return ask("users", { query: { query, count, variant: first() } });
}

const suggest = debounced(async () => {
  const text = $("who").value.trim();
  try {
    const { users, total } = await findUsers(text);
    if (text !== $("who").value.trim()) return;
    $("found").replaceChildren(...users.map((user) => {
      const pick = el("button", { type: "button" }, user.user_id, el("small", {}, ` ${plural(user.events, "item")}`));
      pick.addEventListener("click", () => showUser(user.user_id));
      return el("li", {}, pick);
    }));
    if (!users.length) {
      const why = total ? `none of ${plural(total, "user")} has an id like this` : "the artifact holds no histories";
      $("found").replaceChildren(el("li", { class: "hint" }, `No match: ${why}.`));
    }
    $("search-help").textContent = text ? `${plural(users.length, "match", "matches")}.`
      : "Some users; type to find others.";
  } catch (fault) {
    showFault($("fault"), fault);
  }
}, 120);

$("who").addEventListener("input", suggest);
$("search").addEventListener("submit", (event) => {
  event.preventDefault();
  if ($("who").value.trim()) showUser($("who").value.trim());
});
$("search").addEventListener("keydown", (event) => {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (!step) return;
  const stops = [$("who"), ...$("found").querySelectorAll("button")];
  const next = stops[stops.indexOf(document.activeElement) + step];
  if (!next || !stops.includes(document.activeElement)) return;
  event.preventDefault();
  next.focus();
});
$("own").addEventListener("submit", (event) => {
  event.preventDefault();
  const items = $("history").value.split(/[,\n]/).map((id) => id.trim()).filter(Boolean);
  if (!items.length) {
    showFault($("fault"), new Fault(0, { error: "the history is empty", got: "no item id",
      fix: "write item ids as in the log, with commas between" }));
    return;
  }
  show({ history: items }, items, `a history of ${plural(items.length, "item")}`);
});

async function showUser(id) {
  $("who").value = id;
  const mine = (turn += 1);
  try {
    const { users } = await findUsers(id, 1);
    const user = users.find((each) => each.user_id === id);
    if (mine !== turn) return;
    history.replaceState(null, "", `#user=${encodeURIComponent(id)}`);
    await show({ user_id: id }, user?.history ?? [], `user ${id}`);
  } catch (fault) {
    showFault($("fault"), fault);
  }
}

async function show(whom, past, name) {
  const mine = (turn += 1);
  showFault($("fault"), null);
  document.body.classList.add("about");
  about = `${name[0].toUpperCase()}${name.slice(1)}`;
  $("status").textContent = `Reading ${name} …`;
  await Promise.all(panels.map((panel) => panel.load(whom, past)));
  if (mine !== turn) return;
  const most = Math.max(1, ...panels.map((panel) => panel.count));
  const all = $("most").value === $("most").max;
  Object.assign($("most"), { max: most, disabled: most < 2 });
  if (all) $("most").value = most;
  await refresh();
}

// --- how ------------------------------------------------------------------------------------------------------------
function settings() {
  const [k, most, diversity] = ["k", "most", "lambda"].map((id) => Number($(id).value));
  const all = $("most").disabled || most === Number($("most").max);
  return { k, most: all ? Infinity : most, diversity: diversity / 100 };
}

async function refresh() {
  const asked = settings();
  saySettings();
  await Promise.all(panels.map((panel) => panel.refresh(asked)));
  const lists = panels.map((panel) => new Set(panel.items.map((item) => String(item.item_id))));
  const counts = panels.map((panel) => (panel.count
    ? `${plural(panel.items.length, "item")} from ${plural(panel.used?.size ?? 0, "interest")}`
    : `nothing known, ${plural(panel.items.length, "popular item")}`));
  let says = `${about}: ${counts.join(" and ")}.`;
  if (panels.length === 2) {
    const both = [...lists[0]].filter((id) => lists[1].has(id)).length;
    says += ` ${plural(both, "item")} in both lists.`;
    panels.forEach((panel, at) => panel.markShared(lists[1 - at]));
  }
  if (panels.some((panel) => panel.why)) $("status").textContent = says;
}

function saySettings() {
  const { k, most, diversity } = settings();
  $("k-says").textContent = String(k);
  $("most-says").textContent = most === Infinity ? `all${$("most").disabled ? "" : ` ${$("most").max}`}` : String(most);
  const own = panels.filter((panel) => panel.facts.categories && panel.range)
    .map((panel) => panel.lambdaAt(diversity).toPrecision(2));
  $("lambda-says").textContent = diversity ? own.join(" and ") || `${Math.round(100 * diversity)} %` : "0";
  for (const id of ["k", "most", "lambda"]) $(id).setAttribute("aria-valuetext", $(`${id}-says`).textContent);
}

const moved = debounced(refresh, 100);
for (const id of ["k", "most", "lambda"]) {
  $(id).addEventListener("input", () => {
    saySettings();
    moved();
  });
}

// --- what is served -------------------------------------------------------------------------------------------------
function openCode(facts, path) {
  $("dictionary-of").value = facts.variant;
  dictionary.open(facts, path);
}

function choosePanels(artifacts) {
  const shown = artifacts.filter((each) => $("shown").value.includes(each.variant));
  $("panels").replaceChildren();
  $("panels").classList.toggle("beside", shown.length > 1);
  panels = shown.map((each) => new Panel(each, $("panels"), openCode));
  $("lambda").disabled = !shown.some((each) => each.categories);
}

async function start() {
  const { artifacts } = await ask("artifacts");
  const [a] = artifacts;
  const name = (each) => `${each.variant} · ${each.model}`;
  $("served").textContent = artifacts.map((each) => `${name(each)}${each.data ? ` on ${each.data}` : ""}: `
    + `${plural(each.items, "item")}, ${plural(each.users, "user")}`).join("  |  ");
  const values = artifacts.map((each) => [each.variant, name(each)]);
  if (artifacts.length > 1) values.unshift(["AB", "A and B side by side"]);
  $("shown").replaceChildren(...values.map(([value, text]) => el("option", { value }, text)));
  $("which").hidden = artifacts.length < 2;
  choosePanels(artifacts);
  $("shown").addEventListener("change", async () => {
    const { whom, past } = panels[0];
    choosePanels(artifacts);
    if (whom) await show(whom, past ?? [], about[0].toLowerCase() + about.slice(1));
  });
  dictionary = new Dictionary($("dictionary"), (variant, test) => {
    for (const panel of panels) {
      const here = panel.facts.variant === variant;
      panel.map.light(here ? test : null);
      if (here && test) panel.map.canvas.scrollIntoView({ block: "nearest" });
    }
  });
  const best = artifacts.find((each) => each.sizes.length) ?? a;
  $("dictionary").hidden = false;
  $("dictionary-which").hidden = artifacts.length < 2;
  $("dictionary-of").replaceChildren(...artifacts.map((each) => el("option", { value: each.variant }, name(each))));
  $("dictionary-of").value = best.variant;
  $("dictionary-of").addEventListener("change", () =>
    dictionary.of(artifacts.find((each) => each.variant === $("dictionary-of").value)));
  saySettings();
  dictionary.of(best);
  const asked = new URLSearchParams(location.hash.slice(1)).get("user");
  if (asked) await showUser(asked);
  else $("status").textContent = "Choose a user, or paste a history.";
  suggest();
}

start().catch((fault) => {
  $("served").textContent = "";
  showFault($("fault"), fault);
});
