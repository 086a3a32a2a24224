// What a screen reader calls a control is what it says: "Show the solution", "Search".
document.addEventListener("DOMContentLoaded", () => {
  const named = "summary[aria-label], button.search-button-field[aria-label]";
  document.querySelectorAll(named).forEach((control) => control.removeAttribute("aria-label"));
});
