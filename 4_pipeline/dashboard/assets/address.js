/* The address bar: links change the page without a reload, the query holds the user's choices, back and forward work.
   Dash's Location adds a history entry for each change, so a slider would fill the history. */
(function () {
  "use strict";
  const current_address = () => location.pathname + location.search;
  const show = () => window.dash_clientside.set_props("requested", { data: current_address() });
  // Dash also calls these functions for a new page: then no step in the history is needed.
  const is_change = () => window.dash_clientside.callback_context.triggered_id !== undefined;
  const queries = {};  // the last query of each page, by its link
  let timer;

  /** Put a query into the address bar: as a new history entry, or in place of the current one. */
  function keep(query, is_step) {
    const address = location.pathname + (query ? "?" + query : "");
    if (address === current_address()) return false;
    history[is_step ? "pushState" : "replaceState"](null, "", address);
    return true;
  }

  document.addEventListener("click", (event) => {
    const link = event.target.closest("a.inside");
    if (!link || event.defaultPrevented || event.button || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    const page = link.getAttribute("href");
    const current = document.querySelector("#navigation [aria-current]");
    if (current) queries[current.getAttribute("href")] = location.search;
    const address = page + ((link !== current && link.closest("#navigation") && queries[page]) || "");
    if (address !== current_address()) history.pushState(null, "", address);
    show();
    window.scrollTo(0, 0);
    document.getElementById("page").focus({ preventScroll: true });
  });
  window.addEventListener("popstate", show);

  window.dash_clientside = Object.assign({}, window.dash_clientside, {
    address: {
      name_window: function ([address, title]) {
        document.title = title;
        // The first layout is for the referrer; without a referrer, request the page of this address.
        if (address !== current_address()) show();
      },
      keep_period: function (start, end, latest) {
        if (!start || !end || !document.getElementById("comparison")) return;
        const is_latest = latest && start === latest[0] && end === latest[1];
        keep(is_latest ? "" : new URLSearchParams({ from: start, to: end }).toString(), is_change());
      },
      keep_sliders: function (...values) {
        const defaults = values.pop();
        const changed = defaults.map(([name, value], number) => [name, values[number], value])
          .filter(([_name, value, before]) => Number(value) !== before).map(([name, value]) => [name, value]);
        const path = location.pathname;
        clearTimeout(timer);
        timer = setTimeout(() => {
          if (location.pathname !== path) return;
          const is_new = keep(new URLSearchParams(changed).toString(), false);
          if (is_new) window.dash_clientside.set_props("what-if-rest", { data: values });
        }, 150);
      },
      download: (clicks, file) => (clicks && file) || window.dash_clientside.no_update,
    },
  });
})();
