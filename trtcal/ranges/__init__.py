"""What a tensor's values did, and thresholds that follow: histograms, growth rules, threshold methods, statistics."""
