// A tab that has shown the page, and is loaded again, remembers the token.
try {
  const token = sessionStorage.getItem("token");
  sessionStorage.removeItem("token"); // the page sets it again, where it is the server's
  if (token) location.replace(`/?token=${encodeURIComponent(token)}`);
} catch { /* without storage the words say what to do */ }
