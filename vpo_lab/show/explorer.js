/**
 * The explorer: weigh the objectives and see which answer of each set wins.
 *
 * One implementation behind two doors. In a notebook `explorer.py` hands it to anywidget, which calls `render`;
 * `course/page.py` puts it into a page of its own, which calls `mount`. It needs neither kernel nor network.
 *
 * data: { worlds: [{ name, about, key (markup), objectives (D names), meanings (D texts), start (the objective that has
 *           all weight at first; "": equal weights), requests: [{ title, sets: [
 *           { name, apart (not shown at first), answers (M texts), rewards (M x D, null: not asked), picture (SVG) }] }] }],
 *         utility_weights: { D: K x D }, palette: [colours of answers] }
 * The last set is the one that the game is about.
 * What belongs to answer m in a picture carries data-candidate="m": it is pale unless m wins.
 */

// --- Arithmetic: that of vpo_lab.weights; an objective that is not asked has weight 0 and reward null ----------

const TOLERANCE = 1e-9; // that of vpo_lab.weights.winners
const total = (values) => values.reduce((sum, x) => sum + x, 0);
const dot = (a, b) => a.reduce((sum, x, i) => sum + x * b[i], 0);

/** w.r of every answer: (M, D), (D,) -> (M,). */
export const scalarize = (rewards, weights) => rewards.map((vector) => dot(vector, weights));

/** Which values are the largest, ties all true; of w.r: who wins. */
export function largest(values) {
  const least = Math.max(...values) - TOLERANCE;
  return values.map((value) => value >= least);
}

/** The weights on the asked objectives alone, with sum 1 again. */
export function restrict(weights, asked) {
  const kept = weights.map((w, d) => (asked.includes(d) ? w : 0)), sum = total(kept);
  return kept.map((w, d) => (sum > 0 ? w / sum : Number(asked.includes(d)) / asked.length));
}

/** The mean over K weightings of the best w.r: (M, D), (K, D) -> number. */
export const setReward = (rewards, weightings) =>
  total(weightings.map((weights) => Math.max(...scalarize(rewards, weights)))) / weightings.length;

/** The weights after one was set by hand: those held stay, the others keep their proportions. */
export function rebalance(weights, moved, value, held = []) {
  const stays = (d) => d !== moved && held.includes(d);
  const free = [...weights.keys()].filter((d) => d !== moved && !stays(d));
  const room = Math.max(1 - total(weights.filter((_, d) => stays(d))), 0);
  const own = free.length ? Math.min(Math.max(value, 0), room) : room;
  const sum = total(free.map((d) => weights[d]));
  const share = (w) => (sum > 1e-12 ? ((room - own) * w) / sum : (room - own) / free.length);
  return weights.map((w, d) => (d === moved ? own : stays(d) ? w : share(w)));
}

/** A generator of numbers in [0, 1) from a seed (mulberry32). */
export const generator = (seed) => () => {
  seed = (seed + 0x6d2b79f5) | 0;
  let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
  t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
  return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
};

/** Gamma(alpha) after Marsaglia and Tsang (2000); below 1 by way of alpha + 1. */
function gamma(alpha, random) {
  if (alpha < 1) return gamma(alpha + 1, random) * (1 - random()) ** (1 / alpha);
  const d = alpha - 1 / 3, c = 1 / Math.sqrt(9 * d);
  for (;;) {
    const x = Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());
    const v = (1 + c * x) ** 3;
    if (v > 0 && Math.log(1 - random()) < 0.5 * x * x + d - d * v + d * Math.log(v)) return d * v;
  }
}

/** Weights of d objectives from Dirichlet(alpha). */
export function dirichlet(d, alpha, random) {
  const gammas = Array.from({ length: d }, () => gamma(alpha, random)), sum = total(gammas);
  const corner = Math.floor(random() * d); // where all underflow, the limit is a random corner
  return gammas.map((g, i) => (sum > 0 ? g / sum : Number(i === corner)));
}

/** w.r at the corners of the triangle of three objectives, which share what they have; the others keep theirs. */
export function cornerUtilities(rewards, weights, dims) {
  const room = total(dims.map((d) => weights[d]));
  const others = weights.map((w, d) => (dims.includes(d) ? 0 : w));
  return rewards.map((vector) => dims.map((d) => dot(vector, others) + room * vector[d]));
}

/** The part of a convex polygon where point . side >= 0 (Sutherland and Hodgman); points mix three corners. */
function clip(polygon, side) {
  const heights = polygon.map((point) => dot(point, side));
  return heights.flatMap((height, i) => {
    const last = (i || polygon.length) - 1, t = heights[last] / (heights[last] - height);
    const cut = height < 0 !== heights[last] < 0 ? [polygon[last].map((b, j) => b + t * (polygon[i][j] - b))] : [];
    return height >= 0 ? [...cut, polygon[i]] : cut;
  });
}

const CORNERS = [[1, 0, 0], [0, 1, 0], [0, 0, 1]];

/** The area of a polygon as a share of the triangle. */
const area = (polygon) =>
  Math.abs(total(polygon.map((a, i) => a[0] * polygon[(i + 1) % polygon.length][1] - polygon[(i + 1) % polygon.length][0] * a[1])));

/** The parts of a triangle that answers win, from their w.r at its corners (M, 3): [{ members, polygon, share }]. */
export function winRegions(corners) {
  const groups = []; // answers that are equal everywhere share a part
  corners.forEach((row, m) => {
    const same = groups.find(([first]) => row.every((x, i) => Math.abs(x - corners[first][i]) <= TOLERANCE));
    if (same) same.push(m);
    else groups.push([m]);
  });
  const beats = (polygon, [a], [b]) => clip(polygon, corners[a].map((x, i) => x - corners[b][i]));
  return groups.map((members) => {
    const polygon = groups.reduce((part, rival) => (rival === members ? part : beats(part, members, rival)), CORNERS);
    return { members, polygon, share: area(polygon) };
  }).filter(({ share }) => share > TOLERANCE); // a line is no part
}

/** The solution of n equations, rows of n factors and a right side, by elimination; null where it is not unique. */
function solve(rows) {
  const n = rows.length;
  for (let i = 0; i < n; i++) {
    const at = rows.reduce((best, row, j) => (j > i && Math.abs(row[i]) > Math.abs(rows[best][i]) ? j : best), i);
    if (Math.abs(rows[at][i]) < TOLERANCE) return null;
    [rows[i], rows[at]] = [rows[at], rows[i]];
    rows = rows.map((row, j) => (j === i ? row.map((x) => x / rows[i][i]) : row));
    rows = rows.map((row, j) => (j === i ? row : row.map((x, k) => x - row[i] * rows[i][k])));
  }
  return rows.map((row) => row[n]);
}

const subsets = (items) => items.reduce((all, item) => [...all, ...all.map((one) => [...one, item])], [[]]);

/**
 * The weights on the asked objectives under which an answer is furthest above the best of others: { weights, gap }.
 * A linear program: at one of its corners some objectives have weight, and as many of the others are level.
 */
export function furthestAbove(vector, others, asked) {
  const gains = others.map((other) => vector.map((x, d) => x - other[d]));
  const level = subsets([...gains.keys()]);
  let best = { weights: [], gap: -Infinity };
  for (const dims of subsets(asked)) {
    for (const rows of level.filter((one) => one.length && one.length === dims.length)) {
      const sum = [...dims.map(() => 1), 0, 1], found = solve([...rows.map((m) => [...dims.map((d) => gains[m][d]), -1, 0]), sum]);
      if (!found || dims.some((_, i) => found[i] < -TOLERANCE)) continue;
      const weights = vector.map((_, d) => (dims.includes(d) ? Math.max(found[dims.indexOf(d)], 0) : 0));
      const gap = Math.min(...scalarize(gains, weights));
      if (gap > best.gap + TOLERANCE) best = { weights, gap };
    }
  }
  return best;
}

// --- Markup: texts are escaped, unless they are markup already ---------------------------------------------------

class Markup extends String {}
const escaped = (text) => String(text).replace(/[&<>"']/g, (sign) => `&#${sign.charCodeAt(0)};`);
const inserted = (value) => (Array.isArray(value) ? value.map(inserted).join("") : value instanceof Markup ? value : escaped(value));
const html = (parts, ...values) => new Markup(parts.reduce((text, part, i) => text + inserted(values[i - 1]) + part));
const breakable = (name) => new Markup(escaped(name).replaceAll("_", "_<wbr>"));
const two = (x) => x.toFixed(2), three = (x) => x.toFixed(3);

/** A star for each of the largest values, which tie if there are several; none where the largest is 0. */
function stars(values) {
  const won = largest(values).map((one, i) => one && values[i] > TOLERANCE), mark = won.filter(Boolean).length > 1 ? "★ tie" : "★";
  return won.map((one) => (one ? mark : ""));
}

function meter(text, value, mark, title) {
  return html`<div class="meter" title="${title}">${text}<span class="track" aria-hidden="true"><i style="width:${100 * value}%"></i></span>
    <b>${three(value)} <span class="star">${mark}</span></b></div>`;
}

/** A set as a table; what depends on the weights is left out: stars and w·r. */
function table({ name, answers, rewards }, objectives, color, number) {
  return html`<table><caption class="hidden">Answers of ${name}: objectives and w·r; a star marks the winner</caption>
    <thead><tr><td></td>${[...objectives, "w·r"].map((head) => html`<th scope="col">${breakable(head)}</th>`)}</tr></thead>
    ${answers.map((answer, m) => html`<tbody data-candidate="${m}">
      <tr><th scope="rowgroup" rowspan="2" style="border-left-color:${color(m)}">${m + 1} <span class="star"></span></th>
      <td class="answer" colspan="${objectives.length + 1}">${answer}</td></tr>
      <tr>${rewards[m].map((value) => html`<td class="value" style="--share:${100 * value}%">${value === null ? "–" : number(value)}</td>`)}
      <td class="value total"></td></tr></tbody>`)}</table>`;
}

// --- The triangle -------------------------------------------------------------------------------------------------

const SIDE = 190, HEIGHT = SIDE * Math.sqrt(0.75), LEFT = 10, TOP = 24;
const STRIPE = 0.06; // the width of a tie's stripes, as a share of the triangle's side
const pixels = ([, b, c]) => [LEFT + SIDE * (b + c / 2), TOP + HEIGHT * (1 - c)];
const outline = (polygon) => polygon.map((point) => pixels(point).map((x) => x.toFixed(1)).join(",")).join(" ");

/** A region's parts, [answer, polygon] each: tied answers take turns in slanting stripes. */
function stripes({ members, polygon }) {
  if (members.length === 1) return [[members[0], polygon]];
  const slant = [0, 1 / STRIPE, (0.5 + Math.sqrt(0.75)) / STRIPE]; // at the corners, linear in between
  const between = (n) => clip(clip(polygon, slant.map((s) => s - n)), slant.map((s) => n + 1 - s));
  const parts = Array.from({ length: Math.ceil(slant[2]) }, (_, n) => [members[n % members.length], between(n)]);
  return parts.filter(([, part]) => part.length);
}

function triangle(rewards, weights, dims, objectives, color) {
  const corners = cornerUtilities(rewards, weights, dims);
  const regions = Math.max(...corners.flat()) > TOLERANCE ? winRegions(corners) : []; // nobody wins by 0
  const tied = (members) => (members.length < 4 ? members.map((m) => m + 1).join(" = ") : `${members.length} tied`);
  const percent = (share) => `${Math.round(100 * share)}%`;
  const room = total(dims.map((d) => weights[d]));
  const here = room > 1e-9 ? pixels(dims.map((d) => weights[d] / room)) : null;
  const names = regions.filter(({ share }) => share > 0.02).map(({ members, polygon, share }) => {
    let [x, y] = [0, 1].map((i) => total(polygon.map((point) => pixels(point)[i])) / polygon.length);
    // Below the ring, not under it.
    if (here && Math.abs(x - here[0]) < 12 + 10 * Math.min(members.length, 3) && Math.abs(y - here[1]) < 20) y = here[1] + 22;
    return html`<text class="name" x="${x.toFixed()}" y="${y.toFixed()}">${tied(members)}<tspan x="${x.toFixed()}" dy="1em">${percent(share)}</tspan></text>`;
  });
  const ring = here ? [["none", "#fff", 5], ["#fff", "#000", 2]].map(([fill, ink, width]) =>
    html`<circle cx="${here[0].toFixed(1)}" cy="${here[1].toFixed(1)}" r="6" fill="${fill}" stroke="${ink}" stroke-width="${width}"/>`) : [];
  const places = [[LEFT, TOP + HEIGHT + 19, "start"], [LEFT + SIDE, TOP + HEIGHT + 19, "end"], [LEFT + SIDE / 2, TOP - 7, "middle"]];
  const said = regions.map(({ members, share }) => `${tied(members)} wins ${percent(share)}`).join(", ") || "nobody, all earn 0";
  return html`<svg class="map" viewBox="0 0 ${SIDE + 2 * LEFT} ${Math.round(HEIGHT) + TOP + 24}" role="img"
      aria-label="Who wins where: ${said}">
    <polygon points="${outline(CORNERS)}" fill="#fff"/>
    ${regions.length ? "" : html`<text class="name" x="${LEFT + SIDE / 2}" y="${TOP + 0.7 * HEIGHT}">all earn 0</text>`}
    ${regions.flatMap(stripes).map(([m, part]) => html`<polygon points="${outline(part)}" fill="${color(m)}" fill-opacity=".7"/>`)}
    <polygon class="edge" points="${outline(CORNERS)}"/>${names}${ring}
    ${dims.map((d, i) => html`<text class="corner" x="${places[i][0]}" y="${places[i][1].toFixed()}" text-anchor="${places[i][2]}">${objectives[d]}</text>`)}</svg>`;
}

// --- What a reader sees and turns ---------------------------------------------------------------------------------

const BODY = `<div class="explorer"><div class="columns">
<section class="panel controls" aria-label="Controls">
<fieldset id="requests"><legend><label for="request">Request</label></legend><select id="request"></select></fieldset>
<fieldset id="choice"><legend>Sets to compare</legend><div class="buttons" id="chosen"></div></fieldset>
<fieldset class="all"><legend>What counts?</legend><div id="weights"></div>
<p class="quiet">When you move one weight, the others make room. A locked weight stays.</p></fieldset>
<fieldset class="all"><legend>Users</legend><div class="buttons"><span id="presets" class="buttons"></span>
<button id="draw" class="primary" type="button">a random user</button></div></fieldset>
<details class="all"><summary>More</summary>
<fieldset><legend><label for="alpha">Random users: w ~ Dirichlet(α)</label></legend>
<div class="buttons"><input id="alpha" type="range" min="-1" max="1.5" step="0.1" value="0" aria-describedby="about-alpha"><output id="alpha-value" for="alpha"></output></div>
<p class="quiet" id="about-alpha">α = 1: all kinds of users are equally likely. Below 1: extreme users. Above 1: users who want a bit of everything.</p></fieldset>
<fieldset id="triangles"><legend><label for="corners">Corners of the triangle</label></legend><select id="corners"></select>
<p class="quiet">At a corner, one objective takes all the weight that these three share. The others keep theirs.
Click a point to go there.</p></fieldset></details>
</section>
<div class="right">
<section class="request" aria-label="The request"><p id="title"></p><p id="about" class="quiet"></p><p id="key" class="quiet"></p></section>
<div class="verdict"><p id="summary" aria-live="polite"></p>
<section id="game" aria-label="A game"><p id="said" aria-live="polite"></p><div class="buttons">
<button id="play" type="button"></button><button id="check" class="primary" type="button">Check these weights</button>
<button id="reveal" type="button">Reveal</button><button id="stop" type="button">Stop</button></div></section></div>
<div id="sets"></div>
</div></div></div>`;

/** Show the explorer in an element; `changed(weights)` hears of every move. Returns { turn(weights), weights }. */
export function mount(el, data, changed = () => {}) {
  const host = el.appendChild(document.createElement("div"));
  host.dataset.lmSuppressShortcuts = "true"; // in JupyterLab, arrow keys on a slider are not the notebook's
  const root = host.attachShadow({ mode: "open" }); // the styles of a notebook and ours do not meet
  root.innerHTML = `<style>${STYLE}</style>${BODY}`;
  const $ = (id) => root.getElementById(id), fill = (id, markup) => { $(id).innerHTML = markup; };
  const entries = data.worlds.flatMap((world) => world.requests.map((request) => ({ ...world, ...request })));
  const color = (m) => data.palette[m % data.palette.length];
  const random = generator(1); // the same users in the same order at every visit
  const locked = new Set();
  let entry, asked, sets, weights, worth, triples, dims;
  const away = new Map(); // sets that the reader took away or put back, by name
  const game = { on: false, covered: false, tries: 0, said: "" };

  const equal = () => restrict(entry.objectives.map(() => 1), asked);
  const only = (d) => entry.objectives.map((_, i) => Number(i === d));
  const isAway = ({ name, apart }) => away.get(name) ?? apart;

  function select(at) {
    const before = JSON.stringify([entry?.objectives, entry?.start, asked]);
    entry = entries[at];
    asked = [...entry.objectives.keys()].filter((d) => entry.sets.some(({ rewards }) => rewards.some((row) => row[d] !== null)));
    if (JSON.stringify([entry.objectives, entry.start, asked]) !== before) enter();
    $("title").textContent = entry.title;
    $("about").textContent = entry.about;
    fill("key", entry.key);
    $("choice").hidden = !entry.sets.some(({ apart }) => apart);
    fill("chosen", html`${entry.sets.map((set, i) => html`<label><input type="checkbox" id="s${i}" data-set="${i}"${isAway(set) ? "" : " checked"}> ${set.name}</label>`)}`);
    choose();
  }

  /** Show the sets that the reader wants to compare. */
  function choose() {
    sets = entry.sets.filter((set) => !isAway(set));
    entry.sets.forEach((set, i) => { $(`s${i}`).disabled = sets.length < 2 && !isAway(set); });
    const weightings = data.utility_weights[entry.objectives.length].map((w) => restrict(w, asked));
    worth = sets.map(({ rewards }) => setReward(rewards, weightings));
    // Tests that are passed or not are 1 or 0; objectives in between have two digits.
    const whole = entry.sets.every(({ rewards }) => rewards.flat().every((x) => Number.isInteger(x ?? 0))), number = whole ? String : two;
    fill("sets", html`${sets.map((set, i) => html`<section class="card" aria-labelledby="name${i}"><div class="head"><h2 id="name${i}">${set.name}</h2>
      <span class="none" hidden>earns nothing</span></div>
      <div id="meters${i}"></div><div class="pictures">
      <div class="picture" role="img" aria-label="The answers of ${set.name}">${new Markup(set.picture)}</div><div class="where" id="map${i}"></div></div>
      <div class="scroll">${table(set, entry.objectives, color, number)}</div></section>`)}`);
    Object.assign(game, { on: false, covered: false, said: "" });
    redraw();
  }

  /** Other objectives, so other sliders. */
  function enter() {
    locked.clear();
    const start = asked.find((d) => entry.objectives[d] === entry.start);
    weights = start === undefined ? equal() : only(start);
    triples = asked.flatMap((a, i) => asked.slice(i + 1).flatMap((b, j) => asked.slice(i + j + 2).map((c) => [a, b, c])));
    // The last ones, since the first objective is mostly fulfilled; among them the one that has all weight.
    dims = triples.findLast((triple) => start === undefined || triple.includes(start));
    const names = entry.objectives;
    fill("weights", html`${asked.map((d) => html`<div class="weight"><label for="w${d}" title="${entry.meanings[d]}">${names[d]}</label><output id="v${d}" for="w${d}"></output>
      <label class="lock"><input type="checkbox" id="l${d}" data-lock="${d}" aria-label="lock ${names[d]}"> lock</label>
      <input type="range" id="w${d}" data-weight="${d}" min="0" max="1" step="0.01" aria-describedby="m${d}">
      <span id="m${d}" class="quiet">${entry.meanings[d]}</span></div>`)}`);
    fill("presets", html`<button type="button" data-preset="all">all equal</button>${asked.map((d) =>
      html`<button type="button" data-preset="${d}">only ${names[d]}</button>`)}`);
    $("triangles").hidden = triples.length < 2;
    fill("corners", html`${triples.map((corners, i) => html`<option value="${i}">${corners.map((d) => names[d]).join(", ")}</option>`)}`);
    $("corners").value = triples.indexOf(dims);
  }

  /** Where the surroundings do not say whether they are dark (JupyterLab), their text does. */
  function tint() {
    const { color, colorScheme } = getComputedStyle(el);
    const light = total((color.match(/[\d.]+/g) ?? []).slice(0, 3).map(Number)) > 382;
    if (colorScheme === "normal") host.style.colorScheme = light ? "dark" : "light";
  }

  function redraw() {
    tint();
    for (const d of asked) {
      const value = two(weights[d]);
      Object.assign($(`w${d}`), { value: weights[d], disabled: locked.has(d), ariaValueText: value });
      $(`l${d}`).checked = locked.has(d);
      $(`v${d}`).textContent = value;
    }
    const { objectives } = entry, best = bests();
    const marks = [game.covered ? best.map(() => "") : stars(best), stars(worth)];
    const leaders = (values, stars) => `${sets.filter((_, i) => stars[i]).map(({ name }) => name).join(" = ")} (${three(Math.max(...values))})`;
    const leading = marks[0].some(Boolean) ? `Best set for these weights: ${leaders(best, marks[0])}.` : "No answer here earns anything under these weights.";
    $("summary").textContent = game.covered ? "The scores are covered. Read the answers, move the sliders, then check."
      : `${leading}${worth.some((x) => x > TOLERANCE) ? ` Best over all weights (EUM): ${leaders(worth, marks[1])}.` : ""}`;
    $("sets").classList.toggle("covered", game.covered);
    sets.forEach(({ rewards }, i) => {
      const scores = scalarize(rewards, weights), card = $("sets").children[i];
      const won = game.covered ? scores.map(() => "") : stars(scores);
      fill(`meters${i}`, html`${meter("best w·r now", best[i], marks[0][i], "the best answer for the present weights; the star marks the best set")}
        ${meter("EUM", worth[i], marks[1][i], "the best w·r, averaged over all weights")}`);
      card.querySelector(".none").hidden = game.covered || best[i] > TOLERANCE;
      for (const part of card.querySelectorAll("[data-candidate]")) part.classList.toggle("won", won[part.dataset.candidate] !== "");
      card.querySelectorAll("tbody .star").forEach((star, m) => { star.textContent = won[m]; });
      card.querySelectorAll(".total").forEach((cell, m) => {
        cell.textContent = game.covered ? "?" : two(scores[m]);
        cell.style.setProperty("--share", `${game.covered ? 0 : 100 * scores[m]}%`);
      });
      if (dims) fill(`map${i}`, triangle(rewards, weights, dims, objectives, color));
    });
    showGame();
  }

  const bests = () => sets.map(({ rewards }) => Math.max(...scalarize(rewards, weights)));

  // --- The game: find the weights under which the last set loses -------------------------------------------------

  /** The name of the last set, its best w.r now and that of the best other set: [name, w.r, name, w.r]. */
  function standing() {
    const best = bests(), own = best.pop(), rival = best.indexOf(Math.max(...best));
    return [sets.at(-1).name, own, sets[rival].name, best[rival]];
  }

  function showGame() {
    $("game").hidden = sets.length < 2 || sets.at(-1) !== entry.sets.at(-1);
    const { name } = entry.sets.at(-1), tries = game.on ? ` Tries: ${game.tries}.` : "";
    $("said").textContent = `${game.said || (game.on ? `Find weights under which another set beats ${name}.` : "")}${tries}`.trim();
    $("play").textContent = `${game.said ? "Play again" : "Play"}: find weights under which another set beats ${name}`;
    for (const id of ["check", "reveal", "stop"]) $(id).hidden = !game.on;
    $("play").hidden = game.on;
  }

  function play() {
    Object.assign(game, { on: true, covered: true, tries: 0, said: "" });
    redraw();
    $("check").focus();
  }

  function end(said = "") {
    Object.assign(game, { on: false, covered: false, said });
    redraw();
    $("play").focus();
  }

  function check() {
    const [name, own, rival, best] = standing();
    if (game.covered) game.tries += 1; // the same weights twice are one try
    if (best > own + TOLERANCE) return end(`Found in ${game.tries} ${game.tries === 1 ? "try" : "tries"}. Here ${rival} has ${three(best)}, ${name} ${three(own)}.`);
    game.covered = false;
    game.said = `Not here: ${name} has ${three(own)}, ${rival} ${three(best)}.`;
    redraw();
  }

  function reveal() {
    const own = sets.at(-1).rewards, rivals = sets.slice(0, -1).flatMap(({ rewards }) => rewards);
    const best = rivals.map((vector) => furthestAbove(vector, own, asked)).reduce((a, b) => (b.gap > a.gap + TOLERANCE ? b : a));
    const { name } = sets.at(-1), tries = `Your tries: ${game.tries}.`;
    if (best.gap <= TOLERANCE) return end(`There are none: ${name} has a best answer for every user. ${tries}`);
    const users = data.utility_weights[entry.objectives.length].map((w) => restrict(w, asked));
    const top = (rewards, w) => Math.max(...scalarize(rewards, w));
    const lost = users.filter((w) => top(rivals, w) > top(own, w) + TOLERANCE).length;
    locked.clear();
    turn(best.weights);
    const [, mine, rival, other] = standing();
    end(`Here ${name} loses by most: ${rival} has ${three(other)}, ${name} ${three(mine)}. Another set is better for ${lost} of ${users.length} random users. ${tries}`);
  }

  function turn(to) {
    weights = to;
    if (game.on) Object.assign(game, { covered: true, said: "" });
    else game.said = "";
    redraw();
    changed(weights);
  }

  /** A click in a triangle: take the weights of that point, unless a lock holds one of the three. */
  function goTo(map, event) {
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(map.getScreenCTM().inverse());
    const c = 1 - (at.y - TOP) / HEIGHT, b = (at.x - LEFT) / SIDE - c / 2, point = [1 - b - c, b, c];
    if (point.some((u) => u < -0.04) || dims.some((d) => locked.has(d))) return;
    const inside = point.map((u) => Math.max(u, 0)), scale = total(dims.map((d) => weights[d])) / total(inside);
    turn(weights.map((w, d) => (dims.includes(d) ? scale * inside[dims.indexOf(d)] : w)));
  }

  root.addEventListener("input", ({ target }) => {
    const { weight, lock, set } = target.dataset;
    if (weight) {
      const held = [...weights.keys()].filter((d) => locked.has(d) || !asked.includes(d));
      turn(rebalance(weights, Number(weight), Number(target.value), held));
    } else if (lock) {
      locked[target.checked ? "add" : "delete"](Number(lock));
      redraw();
    } else if (set) {
      away.set(entry.sets[set].name, !target.checked);
      choose();
    } else if (target.id === "request") {
      select(Number(target.value));
      changed(weights);
    } else if (target.id === "corners") {
      dims = triples[target.value];
      redraw();
    } else showAlpha();
  });
  root.addEventListener("click", (event) => {
    const { preset } = event.target.dataset, map = event.target.closest(".map");
    if (map) return goTo(map, event);
    const button = { play, check, reveal, stop: () => end() }[event.target.id];
    if (button) return button();
    if (!preset && event.target.id !== "draw") return;
    locked.clear();
    turn(preset === "all" ? equal() : preset ? only(Number(preset))
      : restrict(dirichlet(weights.length, alpha(), random), asked));
  });
  const alpha = () => 10 ** $("alpha").value;
  const showAlpha = () => { $("alpha-value").textContent = $("alpha").ariaValueText = two(alpha()); };

  const option = (one, i) => html`<option value="${i}">${i + 1}: ${one.title}</option>`;
  fill("request", html`${data.worlds.map((world) => html`<optgroup label="${world.name}">${entries.map((one, i) =>
    one.requests === world.requests ? option(one, i) : "")}</optgroup>`)}`);
  $("requests").hidden = entries.length < 2;
  showAlpha();
  select(0);
  new ResizeObserver(tint).observe(host); // not before it is shown are the colours of its surroundings known
  return {
    turn: (to) => to.length === weights.length && to.some((w, d) => w !== weights[d]) && turn(to),
    get weights() { return weights; },
  };
}

export default {
  /** The door of anywidget: one view of a model with `data` and `weights`. */
  render({ model, el }) {
    const { turn } = mount(el, model.get("data"), (weights) => {
      model.set("weights", weights);
      model.save_changes();
    });
    const follow = () => turn(model.get("weights"));
    follow();
    model.on("change:weights", follow);
    return () => model.off("change:weights", follow);
  },
};

const STYLE = `
:host { display: block;
  --page: light-dark(#f5f6f8, #14171c); --card: light-dark(#fff, #1e232b); --text: light-dark(#1d2129, #e8eaee);
  --quiet: light-dark(#565d69, #a9b1be); --line: light-dark(#d5d9e0, #3a414d); --bar: light-dark(#a9cdea, #356089);
  --won: light-dark(#e2f0fa, #22364a); --accent: light-dark(#005b96, #7fc0f2); --on-accent: light-dark(#fff, #10151b); }
* { box-sizing: border-box; }
.explorer { container-type: inline-size; color: var(--text); font: 1rem/1.45 system-ui, sans-serif; }
h2 { font-size: 1.05rem; margin: 0; }
p { margin: .4rem 0; max-width: 75em; }
p:empty, .picture:empty, [hidden] { display: none !important; }
.quiet { color: var(--quiet); font-size: .87rem; }
.columns { display: grid; grid-template-columns: 15.5rem minmax(0, 1fr); gap: .8rem; align-items: start; }
.panel, .card { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: .7rem .8rem; }
#sets { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(13rem, 100%), 1fr)); gap: .8rem; }
.right { display: grid; gap: .8rem; }
.request p { margin: 0 0 .15rem; }
.verdict { padding: .5rem .8rem; background: var(--won); border: 1px solid var(--line); border-radius: .6rem; }
.verdict p { margin: 0 0 .3rem; max-width: none; }
#game { display: flex; flex-wrap: wrap; gap: .3rem .8rem; align-items: center; }
#game p { margin: 0; }
#chosen label { white-space: nowrap; }
#presets { display: contents; }
summary { cursor: pointer; color: var(--accent); margin-bottom: .3rem; }
fieldset { border: 0; margin: 0 0 .7rem; padding: 0; min-width: 0; }
legend { font-weight: 600; padding: 0; margin-bottom: .3rem; }
.weight { display: grid; grid-template-columns: 1fr auto auto; gap: 0 .7rem; align-items: center; margin-bottom: .35rem; }
.weight input[type=range] { grid-column: 1 / -1; width: 100%; margin: .1rem 0; }
.weight label:first-child { font-weight: 600; }
.weight .quiet { grid-column: 1 / -1; line-height: 1.25; }
.weight .lock { font-size: .87rem; white-space: nowrap; }
output { font-variant-numeric: tabular-nums; min-width: 2.4em; text-align: right; display: inline-block; }
input { accent-color: var(--accent); }
input:disabled { opacity: .45; }
select, button { font: inherit; color: inherit; background: var(--card); border: 1px solid var(--line); border-radius: .4rem;
  padding: .25rem .55rem; max-width: 100%; }
select { width: 100%; font-size: .87rem; }
button { cursor: pointer; }
button:hover { border-color: var(--accent); }
:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; }
.buttons { display: flex; flex-wrap: wrap; gap: .35rem; }
.buttons button { font-size: .87rem; }
.primary { background: var(--accent); color: var(--on-accent); border-color: var(--accent); }
#title { font-weight: 600; }
.head { display: flex; flex-wrap: wrap; justify-content: space-between; align-items: baseline; gap: 0 .6rem; }
.none { color: var(--quiet); font-size: .87rem; font-style: italic; }
.meter { display: grid; grid-template-columns: 6.1rem minmax(1rem, 1fr) auto; gap: .4rem; align-items: center; font-size: .87rem; }
.track { height: .7rem; background: var(--page); border: 1px solid var(--line); border-radius: .35rem; overflow: hidden; }
.track i { display: block; height: 100%; background: var(--accent); }
.meter b { min-width: 5.3em; font-variant-numeric: tabular-nums; white-space: nowrap; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .83rem; margin: .5rem 0 0; }
th, td { padding: .16rem .13rem; text-align: right; font-variant-numeric: tabular-nums; }
thead th { font-weight: 500; color: var(--quiet); vertical-align: bottom; line-height: 1.15; font-size: .68rem; }
tbody { border-top: 1px solid var(--line); }
tbody th { text-align: left; width: 2.2em; padding-left: .25rem; border-left: .5rem solid; vertical-align: top; line-height: 1.25; }
.answer { text-align: left; overflow-wrap: anywhere; }
.value { background: color-mix(in srgb, var(--bar) var(--share), transparent); }
.picture [data-candidate]:not(.won) { opacity: .3; }
tbody.won { background: var(--won); }
.won .answer, .won .total { font-weight: 700; }
.star { color: var(--accent); }
.covered .meter:first-child { visibility: hidden; }
.pictures { display: flex; gap: .6rem; align-items: flex-end; justify-content: center; margin-top: .5rem; }
.pictures svg { display: block; width: 100%; height: auto; }
.picture { flex: 5 1 0; max-width: 9rem; align-self: center; }
.where { flex: 7 1 0; max-width: 11rem; }
.map { cursor: crosshair; font: 16px system-ui, sans-serif; }
.card { container: card / inline-size; }
@container card (max-width: 15.5rem) {
  .meter { grid-template-columns: 1fr auto; }
  .track { display: none; }
  .picture:not(:empty) + .where .map { font-size: 19px; }
  table { font-size: .72rem; }
  thead th { writing-mode: vertical-rl; transform: rotate(180deg); text-align: left; }
  th, td { padding-inline: .05rem; }
}
.edge { fill: none; stroke: var(--quiet); }
.corner { fill: currentColor; }
.name { text-anchor: middle; font-weight: 700; fill: #111; paint-order: stroke; stroke: #fff; stroke-width: 3px; stroke-linejoin: round; pointer-events: none; }
.name tspan { font-weight: 400; }
#key svg { width: 1.1em; height: 1.1em; vertical-align: -.2em; }
@container (max-width: 62rem) { /* a notebook, a page of the site: the controls above, the sets side by side below */
  .columns { grid-template-columns: minmax(0, 1fr); }
  .controls { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(13rem, 100%), 1fr)); gap: .2rem 1.2rem; }
  .controls .all { grid-column: 1 / -1; }
  #choice { grid-column: 2 / -1; }
  #weights { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(14.5rem, 100%), 1fr)); gap: 0 1.2rem; }
}
@container (40rem < width <= 62rem) { /* a weight is one line; what it means is said when one points at it */
  .weight { grid-template-columns: minmax(6.6rem, auto) 1fr auto auto; }
  .weight input[type=range] { grid-column: 2; grid-row: 1; }
  .weight .quiet, .controls .all > .quiet { position: absolute; clip-path: inset(50%); }
  .controls fieldset { margin-bottom: .4rem; }
  .verdict { font-size: .92rem; }
}
@container (max-width: 40rem) { /* a phone: one column, and what the sliders do stays in sight at the lower edge */
  .right { display: contents; }
  #choice { grid-column: auto; }
  #sets { grid-template-columns: minmax(0, 1fr); }
  .verdict { order: 1; position: sticky; bottom: 0; font-size: .87rem; z-index: 1; }
}
.hidden { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }`;
