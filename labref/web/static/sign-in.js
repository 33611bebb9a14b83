// A link of `labref user add` holds the code behind its #, which a browser sends to nobody: put it into the form.
const code = decodeURIComponent(location.hash.slice(1));
if (code) {
  history.replaceState(null, "", location.pathname + location.search);
  document.getElementById("code").value = code;
  document.getElementById("sign-in").submit();
}
