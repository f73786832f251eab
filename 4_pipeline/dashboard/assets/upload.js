/* Adds to Dash's Upload a name for screen readers, and a message about a file that is too large to be sent. */
(function () {
  "use strict";

  function refuse(event) {
    const zone = event.target.closest && event.target.closest("#weather-upload");
    if (!zone) return;
    const file = (event.dataTransfer || event.target).files[0];
    const max = Number(document.getElementById("weather-refused").dataset.max);
    const mega = (bytes) => (bytes / 1e6).toFixed(1);
    const reason = file && file.size > max
      ? `${file.name} was not sent: it has ${mega(file.size)} MB, and at most ${mega(max)} MB are allowed. `
        + "A year of hours takes less than 1 MB; upload longer periods year by year."
      : "";
    window.dash_clientside.set_props("weather-refused", { children: reason });
  }
  document.addEventListener("change", refuse, true);
  document.addEventListener("drop", refuse, true);

  new MutationObserver(() => {
    const input = document.querySelector("#weather-upload input:not([aria-label])");
    if (input) input.setAttribute("aria-label", "CSV file of your inputs");
  }).observe(document, { childList: true, subtree: true });
})();
