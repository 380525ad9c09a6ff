"""The integer model: layers as data, the proof that every integer stays in range, the file format, the fingerprint."""
