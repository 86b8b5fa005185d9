// Fetch the files of the site with progress, and verify them against page.json.

/** An error with a message that is shown to the user as it is. */
export class Problem extends Error {}

// Damaged or incomplete files are requested from the server again, not from the browser's cache.
const distrusted = new Set();

const inMegabytes = (bytes) => `${(bytes / 1e6).toFixed(1)} MB`;

/**
 * Fetch files one after the other and return their bytes by URL.
 *
 * @param {{url: string, bytes: number, sha256: string}[]} files what is expected of each
 * @param {(loaded: number, total: number, text: string) => void} onProgress
 */
export async function fetchFiles(files, onProgress) {
  const total = files.reduce((sum, file) => sum + file.bytes, 0);
  const found = new Map();
  let before = 0;
  for (const file of files) {
    const content = await fetchFile(file, (loaded) =>
      onProgress(before + loaded, total, `${inMegabytes(before + loaded)} of ${inMegabytes(total)}`),
    );
    found.set(new URL(file.url, document.baseURI).href, content);
    before += file.bytes;
  }
  return found;
}

async function fetchFile({ url, bytes, sha256 }, onLoaded) {
  const content = new Uint8Array(bytes);
  let loaded = 0;
  let response;
  try {
    response = await fetch(url, { cache: distrusted.has(url) ? "reload" : "default" });
    if (response.ok) {
      const reader = response.body.getReader();
      for (let part = await reader.read(); !part.done; part = await reader.read()) {
        if (loaded + part.value.length > bytes) throw damaged(url);
        content.set(part.value, loaded);
        loaded += part.value.length;
        onLoaded(loaded);
      }
    }
  } catch (error) {
    if (error instanceof Problem) throw error;
    throw new Problem(
      `${url} could not be loaded: the connection failed after ${inMegabytes(loaded)}. Try again.`,
    );
  }
  if (!response.ok) {
    throw new Problem(
      `${url} is missing on this server (${response.status}). The page must be built again.`,
    );
  }
  if (loaded < bytes) {
    distrusted.add(url);
    throw new Problem(
      `${url} is incomplete: only ${inMegabytes(loaded)} of ${inMegabytes(bytes)} arrived. Try again.`,
    );
  }
  // Browsers compute digests only on pages from https or localhost.
  if (crypto.subtle) {
    const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", content));
    const hex = Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
    if (hex !== sha256) throw damaged(url);
  }
  return content;
}

function damaged(url) {
  distrusted.add(url);
  return new Problem(
    `${url} is damaged: it differs from the file that this page was built with. Try again; if that does not` +
      " help, whoever keeps this page has to build it again.",
  );
}
