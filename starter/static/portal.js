// What the dashboard does by itself: copying, sharing, the reader's own clock, and news as they happen.
// Without it the page can be read and used all the same.

const portal = document.querySelector("[data-portal]");
const part = (name) => portal.querySelector(`[data-${name}]`);
const regions = () => portal.querySelectorAll("[data-live]");

// Times, as the reader's browser writes them, in the reader's zone.

const languages = navigator.languages;
const formats = {
  day: new Intl.DateTimeFormat(languages, { dateStyle: "medium" }),
  moment: new Intl.DateTimeFormat(languages, { dateStyle: "medium", timeStyle: "short" }),
};

function enhance(root) {
  for (const time of root.querySelectorAll("time[data-part]")) {
    time.textContent = formats[time.dataset.part].format(new Date(time.dateTime));
  }
}

// Copying and sharing.

const say = (words) => { part("said").textContent = words; };

async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // Only secure pages may use the clipboard; the older way works on others too.
    const field = Object.assign(document.createElement("textarea"), { value: text, className: "hidden" });
    portal.append(field);
    field.select();
    const done = document.execCommand("copy");
    field.remove();
    return done;
  }
}

async function copy(button) {
  const label = button.querySelector("[data-label]");
  button.dataset.words ??= label.textContent;
  const done = await copied(button.dataset.copy);
  button.focus({ preventScroll: true });
  label.textContent = done ? "Copied" : "Select it to copy";
  say("");
  setTimeout(() => say(done ? button.dataset.done : "Copying is not allowed here. Select the link and copy it."), 50);
  clearTimeout(button.timer);
  button.timer = setTimeout(() => { label.textContent = button.dataset.words; }, 2500);
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-copy], [data-share], [data-select]");
  if (!button) return;
  const { title, text, share } = button.dataset;
  if (button.dataset.copy) copy(button);
  // Whoever closes the share sheet again has only changed their mind.
  else if (share) navigator.share({ title, text, url: share }).catch(() => {});
  else button.select();
});

// News: the page is fetched anew, and the parts that changed take the place of the old ones.

const served = new Map();
for (const region of regions()) served.set(region.dataset.live, region.innerHTML);
enhance(portal);

const figures = () => {
  const { invited, subscribed, earned } = part("invited").dataset;
  return { invited: +invited, subscribed: +subscribed, earned: +earned };
};

function news(before, now) {
  const number = new Intl.NumberFormat(languages);
  const counted = (value, word) => `${number.format(value)} ${word}${value === 1 ? "" : "s"}`;
  if (now.earned > before.earned) return `You got ${counted(now.earned - before.earned, "bonus minute")}`;
  if (now.invited > before.invited) return `${counted(now.invited - before.invited, "friend")} signed up with your link`;
  return "";
}

function announce(words) {
  const toast = part("news");
  toast.textContent = words;
  clearTimeout(toast.timer);
  toast.timer = setTimeout(() => { toast.textContent = ""; }, 12000);
}

function replace(region, html, fresh) {
  const focused = region.contains(document.activeElement) ? document.activeElement.id : null;
  const opened = [...region.querySelectorAll("details[open]")].map((details) => details.id);
  served.set(region.dataset.live, html);
  region.replaceChildren(...fresh.childNodes);
  enhance(region);
  for (const id of opened) document.getElementById(id)?.setAttribute("open", "");
  if (focused === null) return;
  const again = document.getElementById(focused);
  // What had the focus is gone: its place has it.
  if (!again) region.tabIndex = -1;
  (again ?? region).focus({ preventScroll: true });
}

let ended = false;
let fetching = false;
let askedAgain = false;

// Whether the server answered, be it that the visit has ended.
async function refresh() {
  if (fetching) {
    askedAgain = true;
    return true;
  }
  fetching = true;
  for (const region of regions()) region.setAttribute("aria-busy", "true");
  try {
    const answer = await fetch(portal.dataset.page + location.search, { cache: "no-store" });
    if (answer.status === 401) end();
    else if (!answer.ok) return false;
    else show(new DOMParser().parseFromString(await answer.text(), "text/html"));
    return true;
  } catch {
    return false;
  } finally {
    fetching = false;
    for (const region of regions()) region.removeAttribute("aria-busy");
    if (askedAgain && !ended) {
      askedAgain = false;
      update();
    }
  }
}

function show(page) {
  const before = figures();
  portal.dataset.version = page.querySelector("[data-version]").dataset.version;
  for (const region of regions()) {
    const fresh = page.querySelector(`[data-live="${region.dataset.live}"]`);
    const html = fresh?.innerHTML;
    if (fresh && html !== served.get(region.dataset.live)) replace(region, html, fresh);
  }
  const words = news(before, figures());
  if (words) announce(words);
}

// The connection that tells that there is something new. A browser mends most breaks by itself.

let source;
let hinting;
let waiting;
let patience = 1000;

function broken() {
  // A break that is over at once is nobody's concern.
  hinting ??= setTimeout(() => { part("hint").hidden = false; }, 2000);
}

function mended() {
  clearTimeout(hinting);
  hinting = undefined;
  patience = 1000;
  part("hint").hidden = true;
}

function end() {
  if (ended) return;
  ended = true;
  source.close();
  clearTimeout(waiting);
  mended();
  part("over").append(part("over-words").content.cloneNode(true));
}

async function update() {
  if (!(await refresh())) retry();
  else if (source.readyState === EventSource.OPEN) mended();
  else if (source.readyState === EventSource.CLOSED) listen();
}

// Comes again, ever more patiently.
function retry() {
  broken();
  clearTimeout(waiting);
  waiting = setTimeout(update, patience * (0.75 + Math.random() / 2));
  patience = Math.min(patience * 2, 60000);
}

function listen() {
  if (ended) return;
  source = new EventSource(`${portal.dataset.events}?version=${encodeURIComponent(portal.dataset.version)}`);
  // What changed since this version is told as soon as the connection stands.
  source.addEventListener("open", mended);
  source.addEventListener("changed", update);
  source.addEventListener("expired", end);
  source.addEventListener("error", () => {
    broken();
    // Refused for good: the page itself tells why.
    if (source.readyState === EventSource.CLOSED) retry();
  });
}

listen();
addEventListener("pagehide", () => {
  clearTimeout(waiting);
  source.close();
});
addEventListener("pageshow", (event) => {
  if (event.persisted) listen();
});
