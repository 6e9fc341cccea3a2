// What is in progress: its part of the page is asked for again and again, and mended where it differs,
// so that what has the focus keeps it.
const AGAIN = 2000; // ms

function startLive(box) {
  let last = null;
  const again = async () => {
    if (!document.hidden) {
      try {
        const answer = await fetch(box.dataset.live);
        if (answer.ok) {
          const text = await answer.text();
          if (text !== last) mend(box, text);
          last = text;
        }
      } catch { // the server is away: the next time, perhaps
      }
      const state = box.querySelector("[data-state]")?.dataset.state;
      if (state && state !== "running") {
        location.reload(); // its record is there, or what has become of it
        return;
      }
    }
    setTimeout(again, AGAIN);
  };
  setTimeout(again, AGAIN);
}

function mend(box, text) {
  const made = new DOMParser().parseFromString(text, "text/html").body;
  match(box, made);
}

// Make the children of one like those of the other: same elements stay, and only their texts and
// attributes change.
function match(old, made) {
  const fresh = [...made.childNodes];
  fresh.forEach((node, place) => {
    const there = old.childNodes[place];
    if (!there) old.append(node);
    else if (there.nodeName !== node.nodeName || key_of(there) !== key_of(node)) there.replaceWith(node);
    else if (node.nodeType === Node.TEXT_NODE) {
      if (there.data !== node.data) there.data = node.data;
    } else if (node.nodeType === Node.ELEMENT_NODE) {
      for (const { name } of [...there.attributes]) if (!node.hasAttribute(name)) there.removeAttribute(name);
      for (const { name, value } of node.attributes) {
        if (there.getAttribute(name) !== value) there.setAttribute(name, value);
      }
      match(there, node);
    }
  });
  while (old.childNodes.length > fresh.length) old.lastChild.remove();
}

const key_of = (node) => node.dataset?.key;
