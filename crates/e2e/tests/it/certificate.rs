//! A certificate as `openssl req -x509` makes it: self-signed, and an authority's (CA:TRUE).

use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};

/// Writes certificate and key for 127.0.0.1 into `folder`; their paths.
pub fn certificate(folder: &Path) -> (String, String) {
    let mut params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let made = params.self_signed(&key).unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    (write("cert.pem", &made.pem()), write("key.pem", &key.serialize_pem()))
}
