// What this browser can, known to the style sheets before anything is shown: nothing has to move for it afterwards.

document.documentElement.classList.toggle("can-share", "share" in navigator);
