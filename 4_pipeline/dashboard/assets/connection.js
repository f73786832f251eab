/* Show a message while the dashboard's server does not respond; Dash shows none. */
(function () {
  "use strict";
  const EVERY_MILLISECONDS = 3000;
  const TIMEOUT_MILLISECONDS = 5000;
  const HEALTH = new URL("../health", document.currentScript.src);  // under the path prefix of the page
  let since = null;

  async function responds() {
    const signal = AbortSignal.timeout(TIMEOUT_MILLISECONDS);
    try { return (await fetch(HEALTH, { cache: "no-store", signal })).ok; } catch (error) { return false; }
  }
  async function check() {
    const place = document.getElementById("connection");
    const is_up = await responds();
    if (place && is_up === Boolean(since)) {
      since = is_up ? null : new Date();
      place.textContent = since
        ? `The dashboard has not responded since ${since.toISOString().slice(11, 19)} UTC: this page may be out of date, `
          + "and changes have no effect. It reconnects by itself."
        : "";
    }
    setTimeout(check, EVERY_MILLISECONDS);
  }
  setTimeout(check, EVERY_MILLISECONDS);
})();
