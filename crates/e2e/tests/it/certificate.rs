//! A certificate that is its own authority.

use std::path::Path;

/// Writes certificate and key for 127.0.0.1 into `folder`; their paths.
pub fn certificate(folder: &Path) -> (String, String) {
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    (write("cert.pem", &made.cert.pem()), write("key.pem", &made.signing_key.serialize_pem()))
}
