/* Light or dark: the system's preference until the user chooses; the choice is stored. */
(function () {
  "use strict";
  const root = document.documentElement;
  const prefers_dark = matchMedia("(prefers-color-scheme: dark)");

  function chosen() {
    try { return localStorage.getItem("theme"); } catch (error) { return null; }
  }
  function set(theme) {
    root.dataset.bsTheme = theme;
    const button = document.getElementById("theme");
    if (!button) return;
    const other = theme === "dark" ? "Light" : "Dark";  // the theme that a click sets
    button.firstChild.textContent = other;
    button.setAttribute("aria-label", other);
  }

  document.addEventListener("click", (event) => {
    if (!event.target.closest("#theme")) return;
    const theme = root.dataset.bsTheme === "dark" ? "light" : "dark";
    try { localStorage.setItem("theme", theme); } catch (error) { /* a browser without storage */ }
    set(theme);
  });
  prefers_dark.addEventListener("change", () => { if (!chosen()) set(prefers_dark.matches ? "dark" : "light"); });
  set(["light", "dark"].includes(chosen()) ? chosen() : prefers_dark.matches ? "dark" : "light");
  // Dash's first layout adds the button.
  new MutationObserver((_changes, observer) => {
    if (!document.getElementById("theme")) return;
    observer.disconnect();
    set(root.dataset.bsTheme);
  }).observe(document, { childList: true, subtree: true });
})();
