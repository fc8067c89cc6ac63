// Before anything is drawn: the theme chosen here or on Flower's own pages, which keep it there too.
(() => {
  "use strict";
  const kept = () => {
    try {
      return localStorage.getItem("flower-theme");
    } catch {
      return null; // storage is off: the system's theme
    }
  };
  const theme = kept();
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
})();
