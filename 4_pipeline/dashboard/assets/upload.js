/* Add a label for screen readers to Dash's Upload, and a message if a file is too large. */
(function () {
  "use strict";

  function check_size(event) {
    const zone = event.target.closest && event.target.closest("#weather-upload");
    if (!zone) return;
    const file = (event.dataTransfer || event.target).files[0];
    const max = Number(document.getElementById("weather-error").dataset.max);
    const mega = (bytes) => (bytes / 1e6).toFixed(1);
    const reason = file && file.size > max
      ? `${file.name} was not uploaded: it has ${mega(file.size)} MB, and at most ${mega(max)} MB are allowed. `
        + "A year of hourly rows takes less than 1 MB; upload longer periods year by year."
      : "";
    window.dash_clientside.set_props("weather-error", { children: reason });
  }
  document.addEventListener("change", check_size, true);
  document.addEventListener("drop", check_size, true);

  new MutationObserver(() => {
    const input = document.querySelector("#weather-upload input:not([aria-label])");
    if (input) input.setAttribute("aria-label", "CSV file of your inputs");
  }).observe(document, { childList: true, subtree: true });
})();
