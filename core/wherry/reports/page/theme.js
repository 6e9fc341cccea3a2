// The look: as the system, light or dark. What was chosen is kept where the browser lets a page.
const LOOK = "wherry-look";

function kept() {
  try {
    return window.localStorage.getItem(LOOK) || "";
  } catch { // a file's page may have no storage: then the choice lasts as long as the page
    return "";
  }
}

function keep(look) {
  try {
    window.localStorage.setItem(LOOK, look);
  } catch { // as above
  }
}

function startTheme() {
  const choice = document.getElementById("theme");
  const show = (look) => {
    if (look) document.documentElement.dataset.look = look;
    else delete document.documentElement.dataset.look;
  };
  choice.value = ["light", "dark"].includes(kept()) ? kept() : "";
  show(choice.value);
  choice.addEventListener("change", () => {
    show(choice.value);
    keep(choice.value);
  });
  choice.closest("label").hidden = false;
}
