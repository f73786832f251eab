/* Says so when the dashboard's own process does not answer; Dash itself is silent about that. */
(function () {
  "use strict";
  const EVERY_MILLISECONDS = 3000;
  const PATIENCE_MILLISECONDS = 5000;
  const HEALTH = new URL("../health", document.currentScript.src);  // under whatever prefix the page is seen
  let since = null;

  async function answers() {
    const signal = AbortSignal.timeout(PATIENCE_MILLISECONDS);
    try { return (await fetch(HEALTH, { cache: "no-store", signal })).ok; } catch (error) { return false; }
  }
  async function look() {
    const place = document.getElementById("connection");
    const is_there = await answers();
    if (place && is_there === Boolean(since)) {
      since = is_there ? null : new Date();
      place.textContent = since
        ? `The dashboard has not answered since ${since.toISOString().slice(11, 19)} UTC: this page may be out of date, `
          + "and changes have no effect. It continues by itself as soon as the dashboard is back."
        : "";
    }
    setTimeout(look, EVERY_MILLISECONDS);
  }
  setTimeout(look, EVERY_MILLISECONDS);
})();
