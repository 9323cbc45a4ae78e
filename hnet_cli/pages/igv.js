// Hands igv.js, which stands in the page, its reference and tracks.
addEventListener("DOMContentLoaded", () => {
  const place = document.querySelector("#igv"), options = JSON.parse(place.dataset.options);
  delete place.dataset.options;
  globalThis.igv.createBrowser(place, options);
});
