//! A self-signed certificate with CA:TRUE, as `openssl req -x509` makes it.

use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};

/// Writes a certificate and a key for 127.0.0.1 into `folder` and returns their paths.
pub fn certificate(folder: &Path) -> (String, String) {
    let mut params = CertificateParams::new(["127.0.0.1".to_owned()]).expect("valid names");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().expect("a key");
    let signed = params.self_signed(&key).expect("a certificate");
    let write = |name: &str, text: &str| {
        let path = folder.join(name);
        std::fs::write(&path, text).expect("a writable folder");
        path.to_str().expect("a path in UTF-8").to_owned()
    };
    (write("cert.pem", &signed.pem()), write("key.pem", &key.serialize_pem()))
}
